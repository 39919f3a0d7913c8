"""Virtual days. No clock of a server can be moved, so what waits for a time is moved instead: it is due earlier."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Column, Table, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from examples.streamtech.deployment import Deployment
from sagapost.core.databases import aware

_WAITING = frozenset({"deliver_at", "next_attempt_at", "due_at"})
"""The columns in which sagapost keeps when something is to happen."""


async def pass_days(deployment: Deployment, days: int) -> None:
    """Bring every scheduled event, retry and deadline of every service closer."""
    for service in deployment.services:
        parts = (service.outbox.tables.part, service.inbox.tables.part, service.sagas.tables.part)
        async with deployment.engine(service.name).begin() as connection:
            for table in (table for part in parts for table in part.tables):
                for column in table.columns:
                    if column.name in _WAITING:
                        # A scheduled event happens when it is due, so its own time moves with it.
                        times = [column, table.c.time] if column.name == "deliver_at" else [column]
                        await _move(connection, table, times, timedelta(days=days))


async def _move(
    connection: AsyncConnection, table: Table, times: Sequence[Column[datetime]], earlier: timedelta
) -> None:
    keys = list(table.primary_key.columns)
    rows = await connection.execute(select(*keys, *times).where(times[0].is_not(None)))
    for row in rows.all():
        same = (key == value for key, value in zip(keys, row, strict=False))
        moved = {time.name: aware(due) - earlier for time, due in zip(times, row[len(keys) :], strict=True)}
        # A service may have done meanwhile what was due.
        await connection.execute(update(table).where(*same, times[0].is_not(None)).values(moved))
