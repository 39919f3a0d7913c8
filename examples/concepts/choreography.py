"""Services that know events and not each other; two of them react to the same event at the same time."""

from __future__ import annotations

import anyio

from examples.concepts.events import (
    GoodsDispatched,
    OrderCompleted,
    OrderPlaced,
    PaymentTaken,
    PointsAwarded,
    show,
)
from sagapost import Service, StepContext
from sagapost.sagas.choreography import graph_of, to_mermaid
from sagapost.sagas.testing import Rehearsal

orders = Service("orders", source="https://orders.example", starts=[OrderPlaced], ends=[OrderCompleted])
payment = Service("payment", source="https://payment.example")
warehouse = Service("warehouse", source="https://warehouse.example")
loyalty = Service("loyalty", source="https://loyalty.example", ends=[PointsAwarded])


@payment.on(OrderPlaced, emits=[PaymentTaken])
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.publish(PaymentTaken(placed.order, 30_00))


@warehouse.on(PaymentTaken, emits=[GoodsDispatched])
async def dispatch(paid: PaymentTaken, ctx: StepContext) -> None:
    await ctx.publish(GoodsDispatched(paid.order))


@loyalty.on(PaymentTaken, emits=[PointsAwarded])
async def award_points(paid: PaymentTaken, ctx: StepContext) -> None:
    await ctx.publish(PointsAwarded(paid.order, paid.cents // 100))


@orders.on(GoodsDispatched, emits=[OrderCompleted])
async def complete(dispatched: GoodsDispatched, ctx: StepContext) -> None:
    await ctx.publish(OrderCompleted(dispatched.order))


async def main() -> None:
    async with Rehearsal() as stage:
        for service in (orders, payment, warehouse, loyalty):
            await stage.add(service)
        await stage.say(OrderPlaced("4711"))
        await stage.run()
        print("what happened:")
        show(stage)
        print("who declares it:")
        print(to_mermaid(graph_of(stage.choreography)))


if __name__ == "__main__":
    anyio.run(main)
