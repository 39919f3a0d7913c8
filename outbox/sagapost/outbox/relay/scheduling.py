"""The schedule: due events move into the outbox, by the database's clock."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from sagapost.core.outbox_store import OutboxSchedule
from sagapost.outbox.relay.observations import Buried, Moved
from sagapost.outbox.relay.settlement import is_store_error

if TYPE_CHECKING:
    from sagapost.outbox.relay.parts import RelayParts

__all__ = ["run_schedule"]

_BATCH = 500
_SHORTEST = timedelta(milliseconds=1)


async def run_schedule(parts: RelayParts, schedule: OutboxSchedule) -> None:
    """Move due events until cancelled.

    Every relay does this; the store moves each row once. Between moves it sleeps until the next one is due, and never
    longer than the poll interval, since an earlier one may be scheduled meanwhile.
    """
    longest = parts.settings.poll_interval

    async def move() -> timedelta | None:
        due = await schedule.move_due(limit=_BATCH)
        for each in due.buried:
            parts.observer.notify(
                Buried(each.event_id, each.event_type, each.key, each.position, 0, each.reason, policy="skip")
            )
        if due.moved:
            parts.observer.notify(Moved(rows=due.moved))
            parts.nudge.set()
        return None if due.upcoming is None else min(longest, max(due.upcoming, _SHORTEST))

    await parts.background.every(longest, move, is_outage=is_store_error)
