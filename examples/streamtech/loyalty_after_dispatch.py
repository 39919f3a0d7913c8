"""Loyalty, reordered: points when the goods are on their way. Nothing after that can fail, so nothing is ever undone.

Deployed in place of `loyalty`, on the same tables. No other service changes: they never knew when points are given.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from examples.streamtech import loyalty
from examples.streamtech.loyalty import PointsAwarded, credit
from sagapost import Service, StepContext, event


@event("orders.order-completed.v1")
class OrderCompleted(msgspec.Struct):
    """The goods are on their way."""

    order_id: UUID
    customer: str
    cents: int


service = Service(
    "loyalty",
    source=loyalty.service.outbox.source,
    replaces=loyalty.service,
    # The queue keeps the bindings that `loyalty` gave it until somebody removes them at the broker.
    unknown="ignore",
)


@service.on(OrderCompleted, emits=[PointsAwarded])
async def award_points(completed: OrderCompleted, ctx: StepContext) -> None:
    """The step needs no compensation any more: it comes last."""
    points = await credit(ctx.session, completed.order_id, completed.customer, completed.cents)
    await ctx.publish(PointsAwarded(completed.order_id, completed.customer, points), key=str(completed.order_id))
