"""One id goes through the whole saga by itself: through handlers, other services, log records."""

from __future__ import annotations

import anyio

from examples.concepts.events import GoodsDispatched, OrderPlaced, PaymentTaken, show
from sagapost import sagas
from sagapost.inbox import Context, Inbox
from sagapost.outbox import Outbox
from sagapost.sagas.testing import Rehearsal

orders_outbox = Outbox(source="https://orders.example")
orders = Inbox("orders", outbox=orders_outbox)
payment = Inbox("payment", outbox=Outbox(source="https://payment.example"))
warehouse = Inbox("warehouse", outbox=Outbox(source="https://warehouse.example"))


@orders.on(GoodsDispatched)
async def done(_dispatched: GoodsDispatched, ctx: Context) -> None:
    print("orders hears of its saga again:", ctx.event.correlationid)


@payment.on(OrderPlaced, emits=[PaymentTaken])
async def take_payment(placed: OrderPlaced, ctx: Context) -> None:
    await ctx.publish(PaymentTaken(placed.order, 30_00))  # no id is passed on by hand


@warehouse.on(PaymentTaken, emits=[GoodsDispatched])
async def dispatch(paid: PaymentTaken, ctx: Context) -> None:
    await ctx.publish(GoodsDispatched(paid.order))


async def main() -> None:
    async with Rehearsal() as stage:
        service = await stage.add(orders)
        for inbox in (payment, warehouse):
            await stage.add(inbox)
        with sagas.start("order-4711"):  # a web request; sagas.join(header) continues the caller's
            async with service.sessions.begin() as session:
                await orders_outbox.publish(session, OrderPlaced("4711"))
        await stage.run()
        print("sagas:", {event.correlationid for event in stage.events})
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
