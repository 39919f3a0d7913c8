"""How a row of the outbox that is no event disturbs no other: the one place where reading a row may fail.

Another writer may have put anything into a row that its columns hold. A page is decoded in one go; if that fails, row
by row, and what cannot be read is returned as such, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from sagapost.core.envelope import RESERVED_NAMES, Event
from sagapost.core.outbox_store import OutboxRow, Partition, Position

__all__ = ["UnreadableRowError", "read_extensions", "read_rows"]

R = TypeVar("R")

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_extensions = msgspec.json.Decoder(dict[str, str])


class UnreadableRowError(Exception):
    """A row is no event; the text says why."""


def read_extensions(encoded: str) -> dict[str, str]:
    """Return the extension attributes of a row.

    :raises UnreadableRowError: if they are no object of strings with names that CloudEvents allows.
    """
    try:
        extensions = _extensions.decode(encoded)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise UnreadableRowError(f"its extensions are no JSON object of strings: {error}") from None
    for name in extensions:
        if not (name.isascii() and name.isalnum() and name == name.lower()):
            raise UnreadableRowError(
                f"its extension {name[:80]!r} is not named in lower-case ASCII letters and digits only"
            )
        if name in RESERVED_NAMES:
            raise UnreadableRowError(f"its extension {name!r} has the name of an attribute of the event itself")
    return extensions


def read_rows(
    records: Sequence[R], partitions: int, decode: Callable[[Sequence[R], int], list[OutboxRow]]
) -> list[OutboxRow]:
    """Decode records whose columns begin with position, slot, topic, id, source and type, and end with the attempts.

    :param decode: may raise anything; it is then called for each record alone.
    """
    try:
        return decode(records, partitions)
    except Exception:
        rows: list[OutboxRow] = []
        for record in records:
            try:
                rows += decode([record], partitions)
            except Exception as error:
                rows.append(_unreadable(record, partitions, error))
        return rows


def _unreadable(record: Any, partitions: int, error: Exception) -> OutboxRow:
    """Return what can be said of a row: where it is, and what it is called."""
    position, slot, topic, event_id, source, type_ = record[:6]
    key, attempts, retry_in = record[12], record[-2], record[-1]
    reason = str(error) if isinstance(error, UnreadableRowError) else f"{type(error).__name__}: {error}"
    return OutboxRow(
        position=Position(position),
        partition=Partition(slot % partitions if isinstance(slot, int) else 0),
        topic=_shown(topic),
        event=Event(
            id=_shown(event_id),
            source=_shown(source),
            type=_shown(type_),
            time=_NEVER,
            partitionkey=key if isinstance(key, str) else None,
        ),
        attempts=attempts if isinstance(attempts, int) else 0,
        retry_in=retry_in if isinstance(retry_in, float) else 0.0,
        unreadable=f"the row cannot be read as an event: {reason}",
    )


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 255 else f"{text[:250]}..."
