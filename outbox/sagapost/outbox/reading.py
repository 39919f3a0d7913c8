"""How a row of the outbox that is no event disturbs no other: the one place where reading a row may fail.

Another writer may have put anything into a row that its columns hold. A page is decoded in one go; if that fails, row
by row, and what cannot be read is returned as such, with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, TypeVar

import msgspec

from sagapost.core.envelope import ATTRIBUTES, RESERVED_NAMES, Event, Form
from sagapost.core.generated import generated
from sagapost.core.outbox_store import OutboxRow, Partition, Position

__all__ = ["PLACE", "RECORD", "UnreadableRowError", "read_extensions", "record_columns", "row_decoder"]

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


_READ = tuple(
    each.name if each.name != "id" else "event_id"
    for each in sorted(ATTRIBUTES, key=lambda each: each.form in {Form.DATA, Form.EXTENSIONS})
)
RECORD: tuple[str, ...] = ("position", "slot", "topic", *_READ, "attempts", "retry_in")
"""What a reader selects of a row, in this order; `retry_in` in seconds."""
PLACE: Mapping[str, int] = {name: place for place, name in enumerate(RECORD)}
"""Where each of them is in a record."""


def record_columns(expressions: Mapping[str, str]) -> str:
    """Return the SELECT list of a record; `expressions` for what is not simply a column."""
    return ", ".join(f"{expressions[name]} AS {name}" if name in expressions else name for name in RECORD)


def row_decoder(
    conversions: Mapping[str, str], names: Mapping[str, object], *, first: str = ""
) -> Callable[[Sequence[Any], int], list[OutboxRow]]:
    """Return the function that turns records into rows; what is no event becomes an unreadable row.

    Written once for each database and unpacked by position in one go: it runs for every event that a relay publishes.

    :param conversions: attribute -> expression of Python, for what the driver does not return as the event has it.
    :param names: what the expressions refer to.
    :param first: a statement to be executed for each record, which raises `UnreadableRowError` for what is no event.
    """
    arguments = ", ".join(
        f"{each.name}={conversions.get(each.name, each.name if each.name != 'id' else 'event_id')}"
        for each in ATTRIBUTES
    )
    source = f"""
def decode(records, partitions):
    rows = []
    append = rows.append
    for {", ".join(RECORD)} in records:
        {first or "pass"}
        append(OutboxRow(position, slot % partitions, topic, Event({arguments}), attempts, retry_in))
    return rows
"""
    decode: Callable[[Sequence[Any], int], list[OutboxRow]] = generated(
        "decode", source, {"OutboxRow": OutboxRow, "Event": Event, **names}
    )

    def read(records: Sequence[Any], partitions: int) -> list[OutboxRow]:
        return _read_rows(records, partitions, decode)

    return read


def _read_rows(
    records: Sequence[R], partitions: int, decode: Callable[[Sequence[R], int], list[OutboxRow]]
) -> list[OutboxRow]:
    """Decode records with the columns of `RECORD`.

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


_SAID = itemgetter(
    *(PLACE[name] for name in (
        "position", "slot", "topic", "event_id", "source", "type", "partitionkey", "attempts", "retry_in"
    ))
)  # fmt: skip


def _unreadable(record: Any, partitions: int, error: Exception) -> OutboxRow:
    """Return what can be said of a row: where it is, and what it is called."""
    position, slot, topic, event_id, source, type_, key, attempts, retry_in = _SAID(record)
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
