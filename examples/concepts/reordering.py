"""The same steps in another order need fewer compensations: award points once nothing can fail any more."""

from __future__ import annotations

import anyio

from examples.concepts.events import (
    GoodsDispatched,
    ItemMissing,
    OrderPlaced,
    PaymentRefunded,
    PaymentTaken,
    PointsAwarded,
    PointsRevoked,
    short,
)
from sagapost import BusinessFailure, CompensationContext, Service, StepContext
from sagapost.core import event_type_of
from sagapost.sagas.choreography import lint
from sagapost.sagas.testing import Rehearsal


def the_services(points_after: type[PaymentTaken] | type[GoodsDispatched]) -> list[Service]:
    # Where nothing can fail any more there is nothing to undo, and no compensation to write.
    early = points_after is PaymentTaken
    payment = Service("payment", source="https://payment.example", starts=[OrderPlaced], ends=[PaymentRefunded])
    warehouse = Service("warehouse", source="https://warehouse.example", ends=[GoodsDispatched])
    loyalty = Service(
        "loyalty",
        source="https://loyalty.example",
        ends=[PointsAwarded, PointsRevoked] if early else [PointsAwarded],
    )

    @payment.compensation(emits=[PaymentRefunded])
    async def refund_payment(ctx: CompensationContext, *, order: str) -> None:
        await ctx.publish(PaymentRefunded(order, 30_00))

    @payment.on(OrderPlaced, emits=[PaymentTaken], compensation=refund_payment)
    async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
        await ctx.on_rollback(refund_payment, order=placed.order)
        await ctx.publish(PaymentTaken(placed.order, 30_00))

    payment.rolls_back_on(ItemMissing)

    @warehouse.on(
        PaymentTaken,
        emits=[GoodsDispatched],
        fails_with=[ItemMissing],
        likely_to_fail=True,
        changes_nothing=True,
    )
    async def dispatch(paid: PaymentTaken, _ctx: StepContext) -> None:
        raise BusinessFailure(ItemMissing(paid.order, "blue-train"))

    @loyalty.compensation(emits=[PointsRevoked])
    async def revoke_points(ctx: CompensationContext, *, order: str) -> None:
        await ctx.publish(PointsRevoked(order, 30))

    @loyalty.on(points_after, emits=[PointsAwarded], compensation=revoke_points if early else None)
    async def award_points(reason: PaymentTaken | GoodsDispatched, ctx: StepContext) -> None:
        if early:
            await ctx.on_rollback(revoke_points, order=reason.order)
        await ctx.publish(PointsAwarded(reason.order, 30))

    if early:
        loyalty.rolls_back_on(ItemMissing)
    return [payment, warehouse, loyalty]


async def main() -> None:
    for points_after in (PaymentTaken, GoodsDispatched):
        async with Rehearsal() as stage:
            for service in the_services(points_after):
                await stage.add(service)
            await stage.say(OrderPlaced("4711"))
            await stage.run()
            print(f"points after {short(event_type_of(points_after))}:")
            print("  said:", ", ".join(short(event.type) for event in stage.events))
            print(
                "  lint:",
                ", ".join(
                    f"{found.code} {found.subject}" for found in lint(stage.choreography) if found.code == "SP008"
                )
                or "nothing",
            )


if __name__ == "__main__":
    anyio.run(main)
