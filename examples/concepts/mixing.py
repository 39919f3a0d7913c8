"""Choreography between services, orchestration inside one: the warehouse leads its own packing and dispatching."""

from __future__ import annotations

import anyio
import msgspec

from examples.concepts.events import GoodsDispatched, OrderCompleted, OrderPlaced, PaymentTaken, show
from sagapost.core import event
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import Sagas, StepContext
from sagapost.sagas.orchestration import Island
from sagapost.sagas.testing import Rehearsal

# --- what the warehouse says to itself ---


@event("warehouse.pack-goods.v1")
class PackGoods(msgspec.Struct, frozen=True):
    order: str


@event("warehouse.goods-packed.v1")
class GoodsPacked(msgspec.Struct, frozen=True):
    order: str


@event("warehouse.book-courier.v1")
class BookCourier(msgspec.Struct, frozen=True):
    order: str


@event("warehouse.courier-booked.v1")
class CourierBooked(msgspec.Struct, frozen=True):
    order: str


def service(name: str) -> tuple[Inbox, Sagas]:
    outbox = Outbox(source=f"https://{name}.example")
    sagas = Sagas(name, outbox=outbox)
    return Inbox(name, outbox=outbox, context=sagas.context), sagas


orders, _ = service("orders")
payment, _ = service("payment")
warehouse, warehouse_sagas = service("warehouse")


@payment.on(OrderPlaced, emits=[PaymentTaken])
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.publish(PaymentTaken(placed.order, 30_00))


@orders.on(GoodsDispatched, emits=[OrderCompleted])
async def complete(dispatched: GoodsDispatched, ctx: StepContext) -> None:
    await ctx.publish(OrderCompleted(dispatched.order))


# --- the island: first this, then that ---


class Parcel(msgspec.Struct):
    order: str


dispatching = Island("dispatching", state=Parcel, sagas=warehouse_sagas, inbox=warehouse)


@dispatching.starts_on(PaymentTaken)
def begin(paid: PaymentTaken) -> Parcel:
    return Parcel(paid.order)


@dispatching.step(reply=GoodsPacked)
def pack(parcel: Parcel) -> PackGoods:
    return PackGoods(parcel.order)


@dispatching.step(reply=CourierBooked)
def book(parcel: Parcel) -> BookCourier:
    return BookCourier(parcel.order)


@dispatching.completes
def dispatched(parcel: Parcel) -> GoodsDispatched:
    return GoodsDispatched(parcel.order)


# --- who carries the commands out ---


@warehouse.on(PackGoods, emits=[GoodsPacked])
async def pack_goods(command: PackGoods, ctx: StepContext) -> None:
    await ctx.publish(GoodsPacked(command.order))


@warehouse.on(BookCourier, emits=[CourierBooked])
async def book_courier(command: BookCourier, ctx: StepContext) -> None:
    await ctx.publish(CourierBooked(command.order))


async def main() -> None:
    async with Rehearsal() as stage:
        for inbox in (orders, payment, warehouse):
            await stage.add(inbox)
        await stage.say(OrderPlaced("4711"))
        await stage.run()
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
