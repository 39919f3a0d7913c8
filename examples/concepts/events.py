"""What the services of these examples say. In a real system each declares its own view of what it handles."""

from __future__ import annotations

import msgspec

from sagapost import event
from sagapost.sagas.testing import Rehearsal


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct, frozen=True):
    order: str
    item: str = "blue-train"


@event("orders.order-overdue.v1")
class OrderOverdue(msgspec.Struct, frozen=True):
    order: str


@event("orders.order-completed.v1")
class OrderCompleted(msgspec.Struct, frozen=True):
    order: str


@event("orders.order-cancelled.v1")
class OrderCancelled(msgspec.Struct, frozen=True):
    order: str
    reason: str


@event("payment.payment-taken.v1")
class PaymentTaken(msgspec.Struct, frozen=True):
    order: str
    cents: int


@event("payment.payment-declined.v1")
class PaymentDeclined(msgspec.Struct, frozen=True):
    order: str
    reason: str


@event("payment.payment-refunded.v1")
class PaymentRefunded(msgspec.Struct, frozen=True):
    order: str
    cents: int


@event("loyalty.points-awarded.v1")
class PointsAwarded(msgspec.Struct, frozen=True):
    order: str
    points: int


@event("loyalty.points-revoked.v1")
class PointsRevoked(msgspec.Struct, frozen=True):
    order: str
    points: int


@event("warehouse.item-missing.v1")
class ItemMissing(msgspec.Struct, frozen=True):
    order: str
    item: str


@event("warehouse.goods-dispatched.v1")
class GoodsDispatched(msgspec.Struct, frozen=True):
    order: str


@event("mail.mail-sent.v1")
class MailSent(msgspec.Struct, frozen=True):
    order: str
    subject: str


@event("customers.customer-verified.v1")
class CustomerVerified(msgspec.Struct, frozen=True):
    customer: str


def show(stage: Rehearsal, since: int = 0) -> None:
    """Print what was said, with what caused it."""
    names = {said.id: short(said.type) for said in stage.events}
    for said in stage.events[since:]:
        cause = names.get(said.causationid or "")
        print(f"  {short(said.type)}" + (f"   because of {cause}" if cause else ""))


def short(event_type: str) -> str:
    """`payment.payment-taken.v1` -> `payment-taken`."""
    return event_type.split(".")[1]
