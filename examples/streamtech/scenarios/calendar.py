"""Virtual days. No clock of a server can be moved, so what waits for a time is moved instead: it is due earlier."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import DateTime, select, update

from examples.streamtech.deployment import Deployment
from sagapost.inbox.moments import aware

_WAITING = frozenset({"deliver_at", "next_attempt_at", "due_at"})
"""The columns in which sagapost keeps when something is to happen."""


async def pass_days(deployment: Deployment, days: int) -> None:
    """Bring every scheduled event, retry and deadline of every service closer."""
    for service in deployment.services:
        parts = (service.outbox.tables.part, service.inbox.tables.part, service.sagas.tables.part)
        async with deployment.engine(service.name).begin() as connection:
            for table in (table for part in parts for table in part.tables):
                for column in table.columns:
                    if column.name in _WAITING and isinstance(column.type, DateTime):
                        keys = list(table.primary_key.columns)
                        rows = await connection.execute(select(*keys, column).where(column.is_not(None)))
                        for *key, due in rows.all():
                            same = (part == value for part, value in zip(keys, key, strict=True))
                            moved = {column.name: aware(due) - timedelta(days=days)}
                            await connection.execute(update(table).where(*same).values(moved))
