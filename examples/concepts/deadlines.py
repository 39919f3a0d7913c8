"""A service stays silent: the deadline notices, and the saga is undone instead of staying open for ever."""

from __future__ import annotations

from datetime import timedelta

import anyio

from examples.concepts.events import OrderCancelled, OrderCompleted, OrderOverdue, OrderPlaced, PaymentTaken, show
from sagapost import Deadline, Service, StepContext
from sagapost.sagas.testing import Rehearsal

orders = Service(
    "orders", source="https://orders.example", starts=[OrderPlaced], ends=[OrderCompleted, OrderCancelled]
)
PAYMENT = Deadline("payment", OrderOverdue, after=timedelta(hours=1))


@orders.on(OrderPlaced, deadlines=[PAYMENT], changes_nothing=True)
async def watch(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.deadline(PAYMENT, OrderOverdue(placed.order))


@orders.on(PaymentTaken, emits=[OrderCompleted], cancels=[PAYMENT])
async def complete(paid: PaymentTaken, ctx: StepContext) -> None:
    await ctx.cancel_deadline(PAYMENT)
    await ctx.publish(OrderCompleted(paid.order))


@orders.on(OrderOverdue, emits=[OrderCancelled], undoes=[OrderPlaced])
async def cancel(overdue: OrderOverdue, ctx: StepContext) -> None:
    await ctx.publish(OrderCancelled(overdue.order, "no payment within an hour"))


async def main() -> None:
    async with Rehearsal() as stage:
        await stage.add(orders)
        print("payment answers after ten minutes:")
        await stage.say(OrderPlaced("1"), saga="order-1")
        await stage.advance(timedelta(minutes=10))
        await stage.say(PaymentTaken("1", 30_00), saga="order-1")
        await stage.advance(timedelta(days=1))
        show(stage)
        print("payment stays silent:")
        before = len(stage.events)
        await stage.say(OrderPlaced("2"), saga="order-2")
        await stage.advance(timedelta(days=1))
        show(stage, since=before)


if __name__ == "__main__":
    anyio.run(main)
