"""Writers in other processes keep their part of the account in a file: one line per step, in order."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

import msgspec

from tests.history.history import History

__all__ = ["Recorder", "replay"]

_Wrote: TypeAlias = tuple[Literal["wrote"], int, str | None, int | None, float]
_Committed: TypeAlias = tuple[Literal["committed"], int, float]
_Ended: TypeAlias = tuple[Literal["rolled_back", "in_doubt"], int]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[str | int | float | None]).decode


class Recorder:
    """The writer's side. What it did not close is not there: a writer that is killed leaves a short record."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def wrote(self, event: int, *, key: str | None, version: int | None, inserted: float) -> None:
        """See `History.wrote`."""
        self._line(("wrote", event, key, version, inserted))

    def committed(self, event: int, *, at: float) -> None:
        """See `History.committed`."""
        self._line(("committed", event, at))

    def rolled_back(self, event: int) -> None:
        """See `History.rolled_back`."""
        self._line(("rolled_back", event))

    def in_doubt(self, event: int) -> None:
        """See `History.in_doubt`."""
        self._line(("in_doubt", event))

    def _line(self, step: _Wrote | _Committed | _Ended) -> None:
        self._file.write(_encode(step) + b"\n")


def replay(path: Path, history: History) -> None:
    """Add a record to the account.

    :raises ValueError: if the record is damaged.
    """
    with path.open("rb") as lines:
        for line in lines:
            match _decode(line):
                case ("wrote", int() as event, None | str() as key, None | int() as version, float() as inserted):
                    history.wrote(event, key=key, version=version, inserted=inserted)
                case ("committed", int() as event, float() as at):
                    history.committed(event, at=at)
                case ("rolled_back", int() as event):
                    history.rolled_back(event)
                case ("in_doubt", int() as event):
                    history.in_doubt(event)
                case step:
                    raise ValueError(f"{path.name} holds a step of no known kind: {step[:1]!r}")
