"""The schedule: due events move into the outbox, by the database's clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from sagapost.core.errors import StoreError
from sagapost.core.outbox_store import OutboxSchedule
from sagapost.outbox.relay.observations import Moved, StoreLost

if TYPE_CHECKING:
    from sagapost.outbox.relay.parts import Parts

__all__ = ["run_schedule"]

_BATCH = 500


async def run_schedule(parts: Parts, schedule: OutboxSchedule) -> None:
    """Move due events until cancelled.

    Every relay does this; the store moves each row once. Between moves it sleeps until the next one is due, and never
    longer than the poll interval, since an earlier one may be scheduled meanwhile.
    """
    longest = parts.settings.poll_interval.total_seconds()
    attempt = 0
    while True:
        pause = longest
        try:
            moved, upcoming = await schedule.move_due(limit=_BATCH)
            attempt = 0
            if moved:
                parts.observer.notify(Moved(rows=moved))
                parts.nudge.set()
            if upcoming is not None:
                pause = min(longest, max(upcoming.total_seconds(), 0.001))
        except StoreError as error:
            attempt += 1
            pause = parts.settings.reconnect.seconds(attempt)
            parts.observer.notify(StoreLost(parts.database, str(error), attempt, pause))
        await anyio.sleep(pause)
