"""The seven services of StreamTech as they might be deployed next, each in the place of the one that runs.

What a second version does in ordinary life: a new version of an event (`PaymentTaken` has a currency), handlers and
compensations with other names, a compensation with one more argument, a step that comes later in the saga and so needs
no compensation any more. Tables are the same, and so is everything that the services owe each other.
"""

from __future__ import annotations

from uuid import UUID

import msgspec

from examples.streamtech import bank
from examples.streamtech import customers as customers_1
from examples.streamtech import enrolments as enrolments_1
from examples.streamtech import loyalty as loyalty_1
from examples.streamtech import notification as notification_1
from examples.streamtech import orders as orders_1
from examples.streamtech import payment as payment_1
from examples.streamtech import warehouse as warehouse_1
from sagapost import BusinessFailure, CompensationContext, Retry, Service, StepContext, event
from sagapost.sagas.choreography import Choreography

# --- the event that has a new version ---


@event("payment.payment-taken.v2")
class PaymentTaken(msgspec.Struct):
    """The money is ours, and it is known of what kind it is."""

    order_id: UUID
    customer: str
    cents: int
    currency: str


def _euros(taken: payment_1.PaymentTaken) -> PaymentTaken:
    """Read what the version before published: it was all in euros."""
    return PaymentTaken(taken.order_id, taken.customer, taken.cents, "EUR")


# --- orders: a compensation has one more argument, handlers have other names ---

orders = Service(
    "orders",
    source=orders_1.service.outbox.source,
    replaces=orders_1.service,
    starts=[orders_1.OrderPlaced],
    ends=[orders_1.OrderCompleted, orders_1.OrderCancelled],
    announce=True,
)


@orders.compensation(emits=[orders_1.OrderCancelled])
async def cancel_order(ctx: CompensationContext, *, order_id: UUID, prefix: str = "") -> None:
    """Undo the order itself; what the version before recorded has no prefix."""
    order = await ctx.session.get_one(orders_1.Order, order_id, with_for_update=True)
    order.status = orders_1.Status.CANCELLED
    order.reason = prefix + ctx.reason
    await ctx.cancel_deadline(orders_1.IN_TIME)
    await ctx.publish(orders_1.OrderCancelled(order_id, ctx.reason), key=str(order_id))


@orders.on(orders_1.OrderPlaced, compensation=cancel_order, deadlines=[orders_1.IN_TIME])
async def begin(placed: orders_1.OrderPlaced, ctx: StepContext) -> None:
    """What was `watch`."""
    await ctx.on_rollback(cancel_order, order_id=placed.order_id, prefix="sorry: ")
    await ctx.deadline(orders_1.IN_TIME, orders_1.OrderOverdue(placed.order_id))


orders.on(orders_1.StockReserved, changes_nothing=True)(orders_1.confirm)
orders.on(orders_1.PointsAwarded, changes_nothing=True)(orders_1.show_points)
orders.on(orders_1.OrderDispatched, emits=[orders_1.OrderCompleted], cancels=[orders_1.IN_TIME])(orders_1.complete)
orders.on(orders_1.InsufficientStock, undoes=[orders_1.OrderPlaced])(orders_1.out_of_stock)
orders.on(orders_1.PaymentDeclined, undoes=[orders_1.OrderPlaced])(orders_1.not_paid)
orders.on(orders_1.ItemMissing, undoes=[orders_1.OrderPlaced])(orders_1.not_found)
orders.on(orders_1.OrderOverdue, emits=[orders_1.OrderGivenUp])(orders_1.look_into)
orders.on(
    orders_1.StockReleased,
    orders_1.PaymentRefunded,
    orders_1.PointsRevoked,
    undoes=[orders_1.StockReserved, orders_1.PointsAwarded],
)(orders_1.keep_record)


# --- payment: publishes the new version of its event; what refunds has another name ---

payment = Service("payment", source=payment_1.service.outbox.source, replaces=payment_1.service, announce=True)


@payment.compensation(name="refund_payment", emits=[payment_1.PaymentRefunded])
async def give_back(ctx: CompensationContext, *, order_id: UUID) -> None:
    """What was `refund_payment`, and still is in the ledger."""
    await payment_1.refund_payment(ctx, order_id=order_id)


@payment.on(payment_1.OrderPlaced, changes_nothing=True)
async def note_price(order: payment_1.OrderPlaced, ctx: StepContext) -> None:
    """What was `write_invoice`."""
    await payment_1.write_invoice(order, ctx)


@payment.on(
    payment_1.StockReserved,
    emits=[PaymentTaken],
    fails_with=[payment_1.PaymentDeclined],
    compensation=give_back,
    retry=payment_1.BANK,
)
async def charge(reserved: payment_1.StockReserved, ctx: StepContext) -> None:
    """What was `take_payment`, with the new version of its event."""
    if await ctx.rolling_back():
        return
    invoice = await ctx.session.get(payment_1.Invoice, reserved.order_id)
    if invoice is None:
        raise Retry(reason="OrderPlaced is handled at this moment, by another task")
    try:
        await bank.charge(str(invoice.order_id), invoice.customer, invoice.cents)
    except bank.Declined as declined:
        raise BusinessFailure(payment_1.PaymentDeclined(invoice.order_id, str(declined))) from declined
    ctx.session.add(payment_1.Payment(order_id=invoice.order_id, cents=invoice.cents))
    await ctx.on_rollback(give_back, order_id=invoice.order_id)
    taken = PaymentTaken(invoice.order_id, invoice.customer, invoice.cents, "EUR")
    await ctx.publish(taken, key=str(invoice.order_id))


payment.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
payment.pivots_on("warehouse.order-dispatched.v1")
payment.completes_on("orders.order-completed.v1")


# --- warehouse: takes both versions of the event ---

warehouse = Service("warehouse", source=warehouse_1.service.outbox.source, replaces=warehouse_1.service, announce=True)


@warehouse.compensation(emits=[warehouse_1.StockReleased])
async def release_stock(ctx: CompensationContext, *, order_id: UUID) -> None:
    """As before."""
    await warehouse_1.release_stock(ctx, order_id=order_id)


@warehouse.compensation(name="unpack")
async def put_back(ctx: CompensationContext, *, order_id: UUID) -> None:
    """What was `unpack`."""
    await warehouse_1.unpack(ctx, order_id=order_id)


@warehouse.on(
    warehouse_1.OrderPlaced,
    emits=[warehouse_1.StockReserved],
    fails_with=[warehouse_1.InsufficientStock],
    compensation=release_stock,
)
async def put_aside(order: warehouse_1.OrderPlaced, ctx: StepContext) -> None:
    """What was `reserve`."""
    stock = await ctx.session.get(warehouse_1.Stock, order.item, with_for_update=True)
    available = stock.available if stock is not None else 0
    if stock is None or available < order.quantity:
        raise BusinessFailure(warehouse_1.InsufficientStock(order.order_id, order.item, order.quantity, available))
    stock.available -= order.quantity
    ctx.session.add(warehouse_1.Reservation(order_id=order.order_id, item=order.item, quantity=order.quantity))
    await ctx.on_rollback(release_stock, order_id=order.order_id)
    reserved = warehouse_1.StockReserved(order.order_id, order.item, order.quantity)
    await ctx.publish(reserved, key=str(order.order_id))


@warehouse.on(
    PaymentTaken, emits=[warehouse_1.OrderPacked], fails_with=[warehouse_1.ItemMissing], compensation=put_back
)
async def take_from_shelf(paid: PaymentTaken, ctx: StepContext) -> None:
    """What was `pack`."""
    reservation = await ctx.session.get(warehouse_1.Reservation, paid.order_id, with_for_update=True)
    if reservation is None:
        return
    stock = await ctx.session.get_one(warehouse_1.Stock, reservation.item, with_for_update=True)
    if stock.on_shelf < reservation.quantity:
        raise BusinessFailure(warehouse_1.ItemMissing(paid.order_id, reservation.item))
    stock.on_shelf -= reservation.quantity
    reservation.state = warehouse_1.State.PACKED
    await ctx.on_rollback(put_back, order_id=paid.order_id)
    await ctx.publish(warehouse_1.OrderPacked(paid.order_id), key=str(paid.order_id))


warehouse.upcast(payment_1.PaymentTaken, to=PaymentTaken)(_euros)
warehouse.rolls_back_on("payment.payment-declined.v1", warehouse_1.ItemMissing, "orders.order-given-up.v1")
warehouse.completes_on("orders.order-completed.v1")
warehouse.on(
    warehouse_1.OrderPacked,
    emits=[warehouse_1.OrderDispatched],
    changes_nothing=True,
    retry=warehouse_1.COURIER,
    on_exhausted=warehouse.escalation("no-courier", title="No courier has taken the parcel for a week"),
)(warehouse_1.dispatch)


# --- loyalty: points are given later, so that nothing has to be taken back; and, after that, nothing can be ---

loyalty = Service("loyalty", source=loyalty_1.service.outbox.source, replaces=loyalty_1.service, announce=True)


@loyalty.compensation(emits=[loyalty_1.PointsRevoked])
async def revoke_points(ctx: CompensationContext, *, order_id: UUID) -> None:
    """For what the version before has given: no step records it any more."""
    await loyalty_1.revoke_points(ctx, order_id=order_id)


@event("orders.order-completed.v1")
class OrderCompleted(msgspec.Struct):
    """The goods are on their way."""

    order_id: UUID
    customer: str
    cents: int


async def _award(completed: OrderCompleted, ctx: StepContext) -> None:
    """Give the points, unless the version before has given them when the order was paid for."""
    if await ctx.session.get(loyalty_1.Award, completed.order_id) is None:
        points = await loyalty_1.credit(ctx.session, completed.order_id, completed.customer, completed.cents)
        awarded = loyalty_1.PointsAwarded(completed.order_id, completed.customer, points)
        await ctx.publish(awarded, key=str(completed.order_id))


async def _pass_over(paid: PaymentTaken, ctx: StepContext) -> None:
    """Take the event, so that no replica has to wait for one that does."""


def _give_points_at_the_end(service: Service) -> None:
    service.on(PaymentTaken, changes_nothing=True)(_pass_over)
    service.upcast(payment_1.PaymentTaken, to=PaymentTaken)(_euros)
    service.on(OrderCompleted, emits=[loyalty_1.PointsAwarded], changes_nothing=True)(_award)
    service.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
    service.pivots_on("warehouse.order-dispatched.v1")
    service.completes_on("orders.order-completed.v1")


_give_points_at_the_end(loyalty)

loyalty_without_revoking = Service(
    "loyalty", source=loyalty_1.service.outbox.source, replaces=loyalty_1.service, announce=True
)
"""The version after that: the compensation is gone, which is right once no saga has recorded it any more."""
_give_points_at_the_end(loyalty_without_revoking)


# --- notification: takes both versions of the event ---

notification = Service(
    "notification", source=notification_1.service.outbox.source, replaces=notification_1.service, announce=True
)


@notification.compensation()
async def write_again(ctx: CompensationContext, *, order_id: UUID, customer: str) -> None:
    """As before."""
    await notification_1.write_again(ctx, order_id=order_id, customer=customer)


@notification.on(PaymentTaken, compensation=write_again)
async def thank(paid: PaymentTaken, ctx: StepContext) -> None:
    """What was `confirm_payment`."""
    text = f"Thank you. Your payment of {paid.cents / 100:.2f} {paid.currency} has arrived."
    ctx.session.add(
        notification_1.Mail(order_id=paid.order_id, customer=paid.customer, subject="We are packing", text=text)
    )
    await ctx.on_rollback(write_again, order_id=paid.order_id, customer=paid.customer)


notification.upcast(payment_1.PaymentTaken, to=PaymentTaken)(_euros)
notification.on(notification_1.OrderCompleted, changes_nothing=True)(notification_1.announce_parcel)
notification.rolls_back_on("warehouse.item-missing.v1", "orders.order-given-up.v1")
notification.pivots_on("warehouse.order-dispatched.v1")
notification.completes_on("orders.order-completed.v1")


# --- customers and enrolments: other names ---

customers = Service(
    "customers",
    source=customers_1.service.outbox.source,
    replaces=customers_1.service,
    starts=[customers_1.CustomerVerified],
    ends=[customers_1.EnrolmentClosed],
    announce=True,
)


@customers.compensation(name="withdraw_verification")
async def not_verified_after_all(ctx: CompensationContext, *, customer_id: UUID) -> None:
    """What was `withdraw_verification`."""
    await customers_1.withdraw_verification(ctx, customer_id=customer_id)


customers.on(customers_1.CustomerVerified, deadlines=[customers_1.PATIENCE], changes_nothing=True)(
    customers_1.wait_for_enrolments
)
customers.on(customers_1.EnrolmentClosed, cancels=[customers_1.PATIENCE])(customers_1.finish)
customers.rolls_back_on(customers_1.EnrolmentWithdrawn, customers_1.EnrolmentOverdue)

enrolments = Service(
    "enrolments", source=enrolments_1.service.outbox.source, replaces=enrolments_1.service, announce=True
)


@enrolments.compensation()
async def reopen(ctx: CompensationContext, *, customer_id: UUID) -> None:
    """As before."""
    await enrolments_1.reopen(ctx, customer_id=customer_id)


@enrolments.on(
    enrolments_1.CustomerVerified,
    emits=[enrolments_1.EnrolmentClosed],
    fails_with=[enrolments_1.EnrolmentWithdrawn],
    compensation=reopen,
)
async def close_enrolment(verified: enrolments_1.CustomerVerified, ctx: StepContext) -> None:
    """What was `close`."""
    pending = await ctx.session.get(enrolments_1.PendingEnrolment, verified.customer_id, with_for_update=True)
    if pending is None:
        raise BusinessFailure(enrolments_1.EnrolmentWithdrawn(verified.customer_id))
    await ctx.session.delete(pending)
    await ctx.on_rollback(reopen, customer_id=verified.customer_id)
    await ctx.publish(enrolments_1.EnrolmentClosed(verified.customer_id), key=str(verified.customer_id))


enrolments.rolls_back_on("customers.enrolment-overdue.v1")

NEXT = (loyalty, notification, warehouse, payment, orders, customers, enrolments)
"""In the order in which they are deployed: who takes a new event goes before who publishes it."""


def choreography() -> Choreography:
    """Return what the next versions declare, as one."""
    return Choreography(service.manifest for service in NEXT)
