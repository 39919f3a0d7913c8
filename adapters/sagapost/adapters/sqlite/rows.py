"""How an event lies in a row, how a row becomes an event again, and how time is written.

SQLAlchemy keeps a UUID as 32 hexadecimal digits, JSON as text, and a time as the text of its UTC digits, which sorts
by time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite

from sagapost.outbox.reading import RECORD, UnreadableRowError, read_extensions, record_columns, row_decoder
from sagapost.outbox.tables import ENVELOPE_COLUMNS

__all__ = [
    "ENVELOPE",
    "NOW",
    "ROW_COLUMNS",
    "decode_rows",
    "earlier",
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


def earlier(by: timedelta) -> str:
    """Return the SQL for the database's clock less `by`, in the same form."""
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', '{modifier(-by)}') || '000')"


ENVELOPE = ", ".join(f'"{name}"' for name in ENVELOPE_COLUMNS)
"""The envelope's columns, in one fixed order, for moving rows between tables."""


def seconds_until(column: str) -> str:
    """Return the SQL for the seconds from now until a time in `column`.

    SQLite counts time in milliseconds; rounding takes away what the detour over days in floating point adds.
    """
    return f"round((julianday({column}) - julianday('now')) * 86400.0, 3)"


ROW_COLUMNS = record_columns(
    {
        "topic": "coalesce(topic, type)",
        "retry_in": f"CASE WHEN attempts = 0 THEN 0.0 ELSE coalesce({seconds_until('next_attempt_at')}, 0.0) END",
    }
)
"""What the relay reads of a row."""

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


def _check(texts: Mapping[str, object], data: object) -> None:
    """SQLite stores what it is given, whatever the column's type."""
    for name, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise UnreadableRowError(f"its {name} is no text")
    if not isinstance(data, bytes):
        raise UnreadableRowError("its data is no blob")


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnreadableRowError(f"its time {text[:80]!r} is none of the form 2026-11-23 08:00:00") from None


def _id(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise UnreadableRowError(f"its event_id {text[:80]!r} is no UUID in 32 hexadecimal digits") from None


_TEXTS = tuple(name for name in RECORD if name not in {"position", "slot", "data", "attempts", "retry_in"})

decode_rows = row_decoder(
    {
        "id": "read_id(event_id)",
        "time": "read_time(time)",
        "extensions": "{} if extensions is None else read_extensions(extensions)",
    },
    {"check": _check, "read_id": _id, "read_time": _time, "read_extensions": read_extensions},
    first=f"check({{{', '.join(f'{name!r}: {name}' for name in _TEXTS)}}}, data)",
)
"""Turns records with the columns of ROW_COLUMNS into rows."""
