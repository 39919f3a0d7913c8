"""How an event lies in a row, and how a row becomes an event again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Table

from sagapost.core.databases.postgresql import quoting
from sagapost.core.envelope import Event
from sagapost.core.outbox_store import OutboxRow
from sagapost.outbox.reading import UnreadableRowError, read_extensions, read_rows
from sagapost.outbox.tables import ENVELOPE_COLUMNS

if TYPE_CHECKING:
    from asyncpg import Record

__all__ = ["ENVELOPE", "ROW_COLUMNS", "decode_rows", "qualified"]

ENVELOPE = ", ".join(f'"{name}"' if name in {"type", "time", "position"} else name for name in ENVELOPE_COLUMNS)
"""The envelope's columns, in one fixed order, for moving rows between tables."""

ROW_COLUMNS = (
    # The id is turned into text by the server: a UUID object costs this process half a microsecond to print.
    "position, slot, coalesce(topic, type) AS topic, event_id::text AS event_id, source, type, "
    # What asyncpg has no datetime for (infinity, years before Christ or of five digits) would fail the whole page.
    "CASE WHEN time >= '0001-01-01 00:00:00+00' AND time < '9999-12-31 00:00:00+00' THEN time END AS time, "
    "subject, datacontenttype, dataschema, "
    "correlationid, causationid, partitionkey, traceparent, tracestate, extensions, data, attempts, "
    # Only refused rows pay for the arithmetic; on the good path this is a constant.
    "CASE WHEN attempts = 0 OR NOT isfinite(next_attempt_at) THEN 0 "
    "ELSE extract(epoch FROM next_attempt_at - clock_timestamp())::float8 END AS retry_in"
)
"""What the relay reads of a row; `decode_rows` relies on the order."""


def qualified(table: Table) -> str:
    """Return the table's name with its schema, quoted where needed."""
    return quoting.format_table(table)


def decode_rows(records: Sequence[Record], partitions: int) -> list[OutboxRow]:
    """Turn records with the columns of ROW_COLUMNS into rows; what is no event becomes an unreadable one."""
    return read_rows(records, partitions, _decode)


def _decode(records: Sequence[Record], partitions: int) -> list[OutboxRow]:
    """Unpack by position in one go: this runs once for every event the relay publishes."""
    rows: list[OutboxRow] = []
    append = rows.append
    for (
        position, slot, topic, event_id, source, type_, time, subject, content_type, schema, correlation,
        causation, key, traceparent, tracestate, extensions, data, attempts, retry_in,
    ) in records:  # fmt: skip
        if time is None:
            raise UnreadableRowError("its time does not lie in the years 1 to 9999")
        append(
            OutboxRow(
                position,
                slot % partitions,
                topic,
                Event(
                    id=event_id,
                    source=source,
                    type=type_,
                    time=time,
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
        )
    return rows
