"""From decorated handlers to the manifest."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import msgspec

from sagapost.core import event
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Deadline, Sagas, StepContext, manifest_of
from sagapost.sagas.choreography import Compensation, DeclaredDeadline, Step


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    order_id: str


@event("payment.payment-taken.v1")
@dataclass
class PaymentTaken:
    order_id: str
    cents: int


@event("payment.payment-declined.v1")
@dataclass
class PaymentDeclined:
    order_id: str


@event("payment.payment-refunded.v1")
@dataclass
class PaymentRefunded:
    order_id: str


@event("orders.order-overdue.v1")
@dataclass
class OrderOverdue:
    order_id: str


outbox = Outbox(source="https://payment.example")
sagas = Sagas("payment", outbox=outbox, ends=[PaymentRefunded])
inbox = Inbox("payment", outbox=outbox, context=sagas.context)


@sagas.compensation(emits=[PaymentRefunded])
async def refund_payment(ctx: CompensationContext, *, order_id: str) -> None:
    """Give the money back."""


@inbox.on(OrderPlaced, emits=[PaymentTaken, PaymentDeclined])
@sagas.step(
    emits=[PaymentTaken],
    compensation=refund_payment,
    fails_with=[PaymentDeclined],
    deadlines=[Deadline("fulfil", OrderOverdue, after=timedelta(hours=1))],
    likely_to_fail=True,
)
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    """Charge the card.

    Not on the map.
    """


sagas.rolls_back_on(inbox, "warehouse.item-missing.v1")


def test_the_manifest_says_what_the_decorators_say() -> None:
    """Handlers, failures, compensations, deadlines and rollback triggers all reach the map, with nothing invented."""
    manifest = manifest_of(inbox)
    assert manifest.service == "payment"
    assert manifest.source == "https://payment.example"
    assert manifest.ends == ("payment.payment-refunded.v1",)
    assert manifest.steps == (
        Step(
            name="take_payment",
            handles=("orders.order-placed.v1",),
            emits=("payment.payment-taken.v1",),
            fails_with=("payment.payment-declined.v1",),
            compensation=Compensation(name="refund_payment", emits=("payment.payment-refunded.v1",)),
            sets=(DeclaredDeadline(name="fulfil", event="orders.order-overdue.v1", after_seconds=3600.0),),
            likely_to_fail=True,
            summary="Charge the card.",
        ),
        Step(
            name="roll_back",
            handles=("warehouse.item-missing.v1",),
            rolls_back=True,
            changes_nothing=True,
            summary="Undoes what this service did in the saga.",
        ),
    )


def test_the_manifest_carries_the_shape_of_every_class_that_was_named() -> None:
    """Schemas are what the lint compares between services."""
    schemas = manifest_of(inbox).schemas
    assert sorted(schemas) == [
        "orders.order-overdue.v1",
        "orders.order-placed.v1",
        "payment.payment-declined.v1",
        "payment.payment-refunded.v1",
        "payment.payment-taken.v1",
    ]
