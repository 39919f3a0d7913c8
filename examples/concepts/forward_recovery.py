"""No courier today: past the point where undoing makes sense, the saga waits and goes on from where it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import anyio

from examples.concepts.events import GoodsDispatched, PaymentTaken, short
from sagapost import Service, Snooze, StepContext
from sagapost.sagas.testing import Rehearsal

MONDAY = datetime(2026, 3, 2, 18, 30, tzinfo=UTC)

warehouse = Service("warehouse", source="https://warehouse.example")


@warehouse.on(PaymentTaken, emits=[GoodsDispatched], changes_nothing=True)
async def dispatch(paid: PaymentTaken, ctx: StepContext) -> None:
    now = warehouse.outbox.clock.now()
    if not 8 <= now.hour < 18:
        raise Snooze(until=(now + timedelta(hours=14)).replace(hour=8, minute=0), reason="no courier any more today")
    await ctx.publish(GoodsDispatched(paid.order))


async def main() -> None:
    async with Rehearsal(start=MONDAY) as stage:
        service = await stage.add(warehouse)
        await stage.say(PaymentTaken("4711", 30_00))
        await stage.run()
        (parked,) = await service.parked()
        print(f"{parked.reason}: {parked.error}; again at {parked.due:%A %H:%M}")
        await stage.advance(timedelta(days=1))
        said = stage.events[-1]
        print(f"{short(said.type)} at {said.time:%A %H:%M}")


if __name__ == "__main__":
    anyio.run(main)
