"""Services that know events and not each other; two of them react to the same event at the same time."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from examples.concepts.events import (
    GoodsDispatched,
    OrderCompleted,
    OrderPlaced,
    PaymentTaken,
    PointsAwarded,
    show,
)
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import Sagas, StepContext
from sagapost.sagas.choreography import graph_of, to_mermaid
from sagapost.sagas.testing import Rehearsal


def service(name: str, *, starts: Sequence[type] = (), ends: Sequence[type] = ()) -> tuple[Inbox, Sagas]:
    outbox = Outbox(source=f"https://{name}.example")
    sagas = Sagas(name, outbox=outbox, starts=starts, ends=ends)
    return Inbox(name, outbox=outbox, context=sagas.context), sagas


orders, order_sagas = service("orders", starts=[OrderPlaced], ends=[OrderCompleted])
payment, _ = service("payment")
warehouse, _ = service("warehouse")
loyalty, _ = service("loyalty", ends=[PointsAwarded])


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
        for inbox in (orders, payment, warehouse, loyalty):
            await stage.add(inbox)
        await stage.say(OrderPlaced("4711"))
        await stage.run()
        print("what happened:")
        show(stage)
        print("who declares it:")
        print(to_mermaid(graph_of(stage.choreography)))


if __name__ == "__main__":
    anyio.run(main)
