"""Choreography between services, orchestration inside one: the warehouse leads its own packing and dispatching."""

from __future__ import annotations

import anyio
import msgspec

from examples.concepts.events import GoodsDispatched, OrderCompleted, OrderPlaced, PaymentTaken, show
from sagapost import Service, StepContext, event
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


orders = Service("orders", source="https://orders.example")
payment = Service("payment", source="https://payment.example")
warehouse = Service("warehouse", source="https://warehouse.example")


@payment.on(OrderPlaced, emits=[PaymentTaken])
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.publish(PaymentTaken(placed.order, 30_00))


@orders.on(GoodsDispatched, emits=[OrderCompleted])
async def complete(dispatched: GoodsDispatched, ctx: StepContext) -> None:
    await ctx.publish(OrderCompleted(dispatched.order))


# --- the island: first this, then that ---


class Parcel(msgspec.Struct):
    order: str


dispatching = warehouse.island("dispatching", state=Parcel)


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
        for service in (orders, payment, warehouse):
            await stage.add(service)
        await stage.say(OrderPlaced("4711"))
        await stage.run()
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
