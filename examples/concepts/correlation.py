"""One id goes through the whole saga by itself: through handlers, other services, log records."""

from __future__ import annotations

import anyio

from examples.concepts.events import GoodsDispatched, OrderPlaced, PaymentTaken, show
from sagapost import Context, Service
from sagapost.sagas.testing import Rehearsal

orders = Service("orders", source="https://orders.example")
payment = Service("payment", source="https://payment.example")
warehouse = Service("warehouse", source="https://warehouse.example")


@orders.on(GoodsDispatched)
async def done(_dispatched: GoodsDispatched, ctx: Context) -> None:
    print("orders learns of its saga again:", ctx.event.correlationid)


@payment.on(OrderPlaced, emits=[PaymentTaken])
async def take_payment(placed: OrderPlaced, ctx: Context) -> None:
    await ctx.publish(PaymentTaken(placed.order, 30_00))  # no id is passed on by hand


@warehouse.on(PaymentTaken, emits=[GoodsDispatched])
async def dispatch(paid: PaymentTaken, ctx: Context) -> None:
    await ctx.publish(GoodsDispatched(paid.order))


async def main() -> None:
    async with Rehearsal() as stage:
        rehearsed = await stage.add(orders)
        for service in (payment, warehouse):
            await stage.add(service)
        with orders.start("order-4711"):  # a web request; join_request(headers) continues the caller's
            async with rehearsed.sessions.begin() as session:
                await orders.publish(session, OrderPlaced("4711"))
        await stage.run()
        print("sagas:", {event.correlationid for event in stage.events})
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
