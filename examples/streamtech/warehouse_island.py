"""Warehouse with an island: packing and dispatch are led by a coordinator, inside a saga that nobody leads.

Deployed in place of `warehouse`, on the same tables. The others handle and publish what they always did: to them the
island is one step. It begins when an order is paid for, and ends with the parcel on its way or an item missing.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import msgspec

from examples.streamtech import warehouse
from examples.streamtech.warehouse import (
    COURIER,
    Courier,
    InsufficientStock,
    ItemMissing,
    OrderDispatched,
    OrderPlaced,
    PaymentTaken,
    Reservation,
    State,
    Stock,
    StockReleased,
    StockReserved,
)
from sagapost import BusinessFailure, Service, StepContext, event

service = Service(
    "warehouse",
    source=warehouse.service.outbox.source,
    replaces=warehouse.service,
    announce=True,
    # The queue keeps the bindings that `warehouse` gave it until somebody removes them at the broker.
    unknown="ignore",
)

# --- outside the island, as it was ---

service.compensation(emits=[StockReleased])(warehouse.release_stock)
service.on(OrderPlaced, emits=[StockReserved], fails_with=[InsufficientStock], compensation=warehouse.release_stock)(
    warehouse.reserve
)
service.rolls_back_on("payment.payment-declined.v1", ItemMissing, "orders.order-given-up.v1")

# --- commands and answers, of this service alone ---


@event("warehouse.pick-goods.v1")
class PickGoods(msgspec.Struct):
    """Take the goods of an order from the shelf."""

    order_id: UUID


@event("warehouse.goods-picked.v1")
class GoodsPicked(msgspec.Struct):
    """They are packed."""

    order_id: UUID


@event("warehouse.shelf-empty.v1")
class ShelfEmpty(msgspec.Struct):
    """They are not there."""

    order_id: UUID


@event("warehouse.put-goods-back.v1")
class PutGoodsBack(msgspec.Struct):
    """Unpack them."""

    order_id: UUID


@event("warehouse.goods-put-back.v1")
class GoodsPutBack(msgspec.Struct):
    """They are on the shelf again."""

    order_id: UUID


@event("warehouse.call-courier.v1")
class CallCourier(msgspec.Struct):
    """Give the parcel away."""

    order_id: UUID


@event("warehouse.parcel-collected.v1")
class ParcelCollected(msgspec.Struct):
    """The courier has it."""

    order_id: UUID


@event("warehouse.van-full.v1")
class VanFull(msgspec.Struct):
    """Not today."""

    order_id: UUID


# --- the island: which steps, in which order, and what if not ---


class Parcel(msgspec.Struct):
    """What the coordinator remembers of a run."""

    order_id: UUID
    item: str = ""


shipping = service.island("shipping", state=Parcel)


@shipping.starts_on(PaymentTaken)
def begin(paid: PaymentTaken) -> Parcel:
    """An order is paid for."""
    return Parcel(paid.order_id)


@shipping.step(reply=GoodsPicked, failures=[ShelfEmpty], deadline=timedelta(days=2))
def pick(parcel: Parcel) -> PickGoods:
    """Until here a failure goes back."""
    return PickGoods(parcel.order_id)


@pick.compensation(undone=GoodsPutBack)
def put_back(parcel: Parcel) -> PutGoodsBack:
    """Undoes picking."""
    return PutGoodsBack(parcel.order_id)


@shipping.step(reply=ParcelCollected, retry_on=[VanFull], retry=COURIER, escalate=True, pivot=True)
def hand_over(parcel: Parcel) -> CallCourier:
    """From here on a failure goes forward: tomorrow again, for a week, and then a person decides."""
    return CallCourier(parcel.order_id)


@shipping.completes
def dispatched(parcel: Parcel) -> OrderDispatched:
    """What the saga around the island waits for."""
    return OrderDispatched(parcel.order_id)


@shipping.fails
def missing(parcel: Parcel, _: str) -> ItemMissing:
    """What the saga around the island is rolled back for."""
    return ItemMissing(parcel.order_id, "the parcel")


# --- the work; how it is undone is the coordinator's business, not that of these handlers ---


@service.on(PickGoods, emits=[GoodsPicked, ShelfEmpty], changes_nothing=True)
async def pick_goods(command: PickGoods, ctx: StepContext) -> None:
    """Take the goods from the shelf."""
    reservation = await ctx.session.get_one(Reservation, command.order_id, with_for_update=True)
    stock = await ctx.session.get_one(Stock, reservation.item, with_for_update=True)
    if stock.on_shelf < reservation.quantity:
        raise BusinessFailure(ShelfEmpty(command.order_id))
    stock.on_shelf -= reservation.quantity
    reservation.state = State.PACKED
    await ctx.publish(GoodsPicked(command.order_id))


@service.on(PutGoodsBack, emits=[GoodsPutBack], undoes=[PickGoods])
async def put_goods_back(command: PutGoodsBack, ctx: StepContext) -> None:
    """Put them back."""
    reservation = await ctx.session.get_one(Reservation, command.order_id, with_for_update=True)
    stock = await ctx.session.get_one(Stock, reservation.item, with_for_update=True)
    stock.on_shelf += reservation.quantity
    reservation.state = State.RESERVED
    await ctx.publish(GoodsPutBack(command.order_id))


@service.on(CallCourier, emits=[ParcelCollected, VanFull], changes_nothing=True)
async def call_courier(command: CallCourier, ctx: StepContext) -> None:
    """Give the parcel to the courier, if there is room."""
    courier = await ctx.session.get(Courier, "van", with_for_update=True)
    if courier is None or courier.room == 0:
        raise BusinessFailure(VanFull(command.order_id))
    courier.room -= 1
    reservation = await ctx.session.get_one(Reservation, command.order_id)
    reservation.state = State.DISPATCHED
    await ctx.publish(ParcelCollected(command.order_id))
