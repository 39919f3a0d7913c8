"""The item is not on the shelf: what was done is undone, newest first, and what cannot be undone is made good."""

from __future__ import annotations

import anyio

from examples.concepts.events import (
    ItemMissing,
    MailSent,
    OrderPlaced,
    PaymentRefunded,
    PaymentTaken,
    PointsAwarded,
    PointsRevoked,
    show,
)
from sagapost import BusinessFailure, CompensationContext, Service, StepContext
from sagapost.sagas.testing import Rehearsal

# For brevity one service takes the money, awards the points and sends the mail; in StreamTech these are three.
shop = Service("shop", source="https://shop.example")
warehouse = Service("warehouse", source="https://warehouse.example")


@shop.compensation(emits=[PaymentRefunded])
async def refund_payment(ctx: CompensationContext, *, order: str, cents: int) -> None:
    await ctx.publish(PaymentRefunded(order, cents))


@shop.compensation(emits=[PointsRevoked])
async def revoke_points(ctx: CompensationContext, *, order: str, points: int) -> None:
    await ctx.publish(PointsRevoked(order, points))


@shop.compensation(emits=[MailSent])
async def apologise(ctx: CompensationContext, *, order: str) -> None:
    """A mail cannot be unsent: a second one corrects the first."""
    await ctx.publish(MailSent(order, "We are sorry: your order is cancelled"))


@shop.on(OrderPlaced, emits=[PaymentTaken], compensation=refund_payment)
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.on_rollback(refund_payment, order=placed.order, cents=30_00)
    await ctx.publish(PaymentTaken(placed.order, 30_00))


@shop.on(PaymentTaken, emits=[PointsAwarded], compensation=revoke_points)
async def award_points(paid: PaymentTaken, ctx: StepContext) -> None:
    await ctx.on_rollback(revoke_points, order=paid.order, points=30)
    await ctx.publish(PointsAwarded(paid.order, 30))


@shop.on(PointsAwarded, emits=[MailSent], compensation=apologise)
async def confirm(awarded: PointsAwarded, ctx: StepContext) -> None:
    await ctx.on_rollback(apologise, order=awarded.order)
    await ctx.publish(MailSent(awarded.order, "Your order is on its way"))


shop.rolls_back_on(ItemMissing)


@warehouse.on(MailSent, fails_with=[ItemMissing])
async def pack(sent: MailSent, _ctx: StepContext) -> None:
    if sent.subject.startswith("Your order"):
        raise BusinessFailure(ItemMissing(sent.order, "blue-train"))


async def main() -> None:
    async with Rehearsal() as stage:
        service = await stage.add(shop)
        await stage.add(warehouse)
        await stage.say(OrderPlaced("4711"), saga="order-4711")
        await stage.run()
        show(stage)
        print("the record of the rollback, in the order of the steps:")
        for name, state in await service.compensations("order-4711"):
            print(f"  {name}: {state}")


if __name__ == "__main__":
    anyio.run(main)
