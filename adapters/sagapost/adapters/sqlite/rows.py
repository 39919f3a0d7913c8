"""How an event lies in a row, how a row becomes an event again, and how time is written.

SQLAlchemy keeps a UUID as 32 hexadecimal digits, JSON as text, and a time as the text of its UTC digits, which sorts
by time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite

from sagapost.core.envelope import Event
from sagapost.core.outbox_store import OutboxRow, Partition, Position
from sagapost.outbox.reading import UnreadableRowError, read_extensions, read_rows
from sagapost.outbox.tables import ENVELOPE_COLUMNS

__all__ = [
    "ENVELOPE",
    "NOW",
    "ROW_COLUMNS",
    "decode_rows",
    "json_array",
    "LATER",
    "modifier",
    "quoted",
    "seconds_until",
]

NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"
"""The database's clock, in milliseconds, in the form that SQLAlchemy writes (six digits)."""

LATER = "(strftime('%Y-%m-%d %H:%M:%f', 'now', ?) || '000')"
"""The database's clock plus a `modifier`."""

ENVELOPE = ", ".join(f'"{name}"' for name in ENVELOPE_COLUMNS)
"""The envelope's columns, in one fixed order, for moving rows between tables."""


def seconds_until(column: str) -> str:
    """Return the SQL for the seconds from now until a time in `column`.

    SQLite counts time in milliseconds; rounding takes away what the detour over days in floating point adds.
    """
    return f"round((julianday({column}) - julianday('now')) * 86400.0, 3)"


ROW_COLUMNS = (
    "position, slot, coalesce(topic, type), event_id, source, type, time, subject, datacontenttype, dataschema, "
    "correlationid, causationid, partitionkey, traceparent, tracestate, extensions, data, attempts, "
    f"CASE WHEN attempts = 0 THEN 0.0 ELSE coalesce({seconds_until('next_attempt_at')}, 0.0) END"
)
"""What the relay reads of a row; `decode_rows` relies on the order."""

_TEXTS = (
    "topic", "event_id", "source", "type", "time", "subject", "datacontenttype", "dataschema", "correlationid",
    "causationid", "partitionkey", "traceparent", "tracestate", "extensions",
)  # fmt: skip

_preparer = sqlite.dialect().identifier_preparer


def quoted(table: Table) -> str:
    """Return the table's name, quoted where needed."""
    return _preparer.format_table(table)


def json_array(values: Collection[int]) -> str:
    """Return the parameter of ``json_each(?)``: any number of values in one parameter of one prepared statement."""
    return json.dumps(list(values))


def modifier(after: timedelta) -> str:
    """Return `after` as a modifier of SQLite's date functions."""
    return f"{after.total_seconds():+.3f} seconds"


def decode_rows(records: Sequence[tuple[Any, ...]], partitions: int) -> list[OutboxRow]:
    """Turn records with the columns of ROW_COLUMNS into rows; what is no event becomes an unreadable one."""
    return read_rows(records, partitions, _decode_all)


def _decode_all(records: Sequence[tuple[Any, ...]], partitions: int) -> list[OutboxRow]:
    return [_decode(partitions, *record) for record in records]


def _decode(
    partitions: int,
    position: int,
    slot: int,
    topic: str,
    event_id: str,
    source: str,
    type_: str,
    time: str,
    subject: str | None,
    content_type: str | None,
    schema: str | None,
    correlation: str | None,
    causation: str | None,
    key: str | None,
    traceparent: str | None,
    tracestate: str | None,
    extensions: str | None,
    data: bytes,
    attempts: int,
    retry_in: float,
) -> OutboxRow:
    # SQLite stores what it is given, whatever the column's type.
    texts = (topic, event_id, source, type_, time, subject, content_type, schema, correlation, causation, key,
             traceparent, tracestate, extensions)  # fmt: skip
    for name, value in zip(_TEXTS, texts, strict=True):
        if value is not None and not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UnreadableRowError(f"its {name} is no text")
    if not isinstance(data, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UnreadableRowError("its data is no blob")
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise UnreadableRowError(f"its time {time[:80]!r} is none of the form 2026-11-23 08:00:00") from None
    return OutboxRow(
        Position(position),
        Partition(slot % partitions),
        topic,
        Event(
            id=str(UUID(event_id)),
            source=source,
            type=type_,
            time=moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC),
            data=data,
            subject=subject,
            datacontenttype=content_type,
            dataschema=schema,
            correlationid=correlation,
            causationid=causation,
            partitionkey=key,
            traceparent=traceparent,
            tracestate=tracestate,
            extensions={} if extensions is None else read_extensions(extensions),
        ),
        attempts,
        retry_in,
    )
