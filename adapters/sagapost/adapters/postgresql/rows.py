"""How an event lies in a row, and how a row becomes an event again."""

from __future__ import annotations

from typing import NoReturn

from sqlalchemy import Table

from sagapost.core.databases.postgresql import quoting
from sagapost.outbox.reading import UnreadableRowError, read_extensions, record_columns, row_decoder
from sagapost.outbox.tables import ENVELOPE_COLUMNS

__all__ = ["ENVELOPE", "ROW_COLUMNS", "decode_rows", "qualified"]

ENVELOPE = ", ".join(f'"{name}"' if name in {"type", "time", "position"} else name for name in ENVELOPE_COLUMNS)
"""The envelope's columns, in one fixed order, for moving rows between tables."""

ROW_COLUMNS = record_columns(
    {
        "topic": "coalesce(topic, type)",
        # Turned into text by the server: a UUID object costs this process half a microsecond to print.
        "event_id": "event_id::text",
        # What asyncpg has no datetime for (infinity, years before Christ or of five digits) would fail the whole page.
        "time": "CASE WHEN time >= '0001-01-01 00:00:00+00' AND time < '9999-12-31 00:00:00+00' THEN time END",
        # Only refused rows pay for the arithmetic; on the good path this is a constant.
        "retry_in": "CASE WHEN attempts = 0 OR NOT isfinite(next_attempt_at) THEN 0 "
        "ELSE extract(epoch FROM next_attempt_at - clock_timestamp())::float8 END",
    }
)
"""What the relay reads of a row."""


def _out_of_range() -> NoReturn:
    raise UnreadableRowError("its time does not lie in the years 1 to 9999")


decode_rows = row_decoder(
    {"extensions": "{} if extensions is None else read_extensions(extensions)"},
    {"read_extensions": read_extensions, "out_of_range": _out_of_range},
    first="if time is None: out_of_range()",
)
"""Turns records with the columns of ROW_COLUMNS into rows."""


def qualified(table: Table) -> str:
    """Return the table's name with its schema, quoted where needed."""
    return quoting.format_table(table)
