"""The test kit for users: a choreography run in one process, in virtual time, in any order."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.core.clock import SystemClock
from sagapost.core.errors import ConfigurationError
from sagapost.inbox import BusinessFailure, Context, Inbox, Retry
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Deadline, Sagas, StepContext
from sagapost.sagas.events import RollbackRequested
from sagapost.sagas.testing import Rehearsal, RehearsalError, RehearsedService, VirtualClock

SAGA = "order-4711"
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@event("orders.placed.v1")
class Placed(msgspec.Struct, frozen=True):
    order: str


@event("orders.completed.v1")
class Completed(msgspec.Struct, frozen=True):
    order: str


@event("orders.cancelled.v1")
class Cancelled(msgspec.Struct, frozen=True):
    order: str


@event("orders.overdue.v1")
class Overdue(msgspec.Struct, frozen=True):
    order: str


FULFIL = Deadline("fulfil", Overdue, after=timedelta(days=3))


@event("payment.taken.v1")
class Taken(msgspec.Struct, frozen=True):
    order: str


@event("payment.declined.v1")
class Declined(msgspec.Struct, frozen=True):
    order: str


@event("payment.refunded.v1")
class Refunded(msgspec.Struct, frozen=True):
    order: str


@event("warehouse.dispatched.v1")
class Dispatched(msgspec.Struct, frozen=True):
    order: str


class Base(DeclarativeBase):
    """The payment service's own tables."""


class Payment(Base):
    __tablename__ = "payments"

    order: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]


@dataclass
class Shop:
    """Three services, and what makes them misbehave."""

    declined: bool = False
    courier_comes: datetime = NOON
    broken: bool = False
    silent: bool = False
    chatty: bool = False
    undeclared: bool = False
    log: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._orders()
        self._payment()
        self._warehouse()

    def _orders(self) -> None:
        outbox = Outbox(source="https://orders.example")
        self.order_sagas = sagas = Sagas("orders", outbox=outbox, starts=[Placed], ends=[Completed, Cancelled])
        self.orders = inbox = Inbox("orders", outbox=outbox, context=sagas.context)

        @inbox.on(Placed, emits=[Overdue])
        @sagas.step(deadlines=[FULFIL], changes_nothing=True)
        async def watch(placed: Placed, ctx: StepContext) -> None:
            await ctx.deadline(FULFIL, Overdue(placed.order))

        @inbox.on(Dispatched, emits=[Completed])
        @sagas.step(cancels=[FULFIL])
        async def complete(dispatched: Dispatched, ctx: StepContext) -> None:
            await ctx.cancel_deadline(FULFIL)
            await ctx.publish(Completed(dispatched.order))
            if self.chatty:
                await ctx.publish(Placed(dispatched.order))

        @inbox.on(Declined, Overdue, emits=[Cancelled])
        @sagas.step(undoes=[Placed], cancels=[FULFIL])
        async def cancel(failed: Declined | Overdue, ctx: StepContext) -> None:
            await ctx.cancel_deadline(FULFIL)
            await ctx.publish(Cancelled(failed.order))

    def _payment(self) -> None:
        outbox = Outbox(source="https://payment.example")
        sagas = Sagas("payment", outbox=outbox, ends=[Refunded])
        self.payment = inbox = Inbox("payment", outbox=outbox, context=sagas.context)

        @sagas.compensation(emits=[Refunded])
        async def refund(ctx: CompensationContext, *, order: str) -> None:
            (await ctx.session.get_one(Payment, order)).state = "refunded"
            await ctx.publish(Refunded(order))

        @inbox.on(Placed, emits=[Taken, Declined])
        @sagas.step(compensation=refund, fails_with=[Declined])
        async def take(placed: Placed, ctx: StepContext) -> None:
            if self.declined:
                raise BusinessFailure(Declined(placed.order))
            ctx.session.add(Payment(order=placed.order, state="taken"))
            await ctx.on_rollback(refund, order=placed.order)
            await ctx.publish(Taken(placed.order))

        sagas.rolls_back_on(inbox, Cancelled)

    def _warehouse(self) -> None:
        outbox = Outbox(source="https://warehouse.example")
        sagas = Sagas("warehouse", outbox=outbox)
        self.warehouse = inbox = Inbox("warehouse", outbox=outbox, context=sagas.context)

        @inbox.on(Taken, emits=[] if self.undeclared else [Dispatched])
        @sagas.step(changes_nothing=True)
        async def dispatch(taken: Taken, ctx: StepContext) -> None:
            self.log.append(taken.order)
            if self.broken:
                raise ZeroDivisionError("a shelf has no height")
            if self.silent:
                return
            if outbox.clock.now() < self.courier_comes:
                raise Retry(timedelta(hours=1), reason="no courier yet")
            await ctx.publish(Dispatched(taken.order))

    async def enter(self, stage: Rehearsal) -> RehearsedService:
        """Bring all three on the stage; return the payment service."""
        await stage.add(self.orders)
        await stage.add(self.warehouse)
        return await stage.add(self.payment, metadata=Base.metadata)


def types(stage: Rehearsal) -> list[str]:
    """Return the types of all events, in order."""
    return [event.type.removesuffix(".v1") for event in stage.events]


async def test_one_service_alone_given_events_expect_events() -> None:
    """The other services are played by the test: it says their events and looks at the answers and the tables."""
    shop = Shop()
    async with Rehearsal() as stage:
        payment = await stage.add(shop.payment, metadata=Base.metadata)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        assert stage.said(Taken) == [Taken("4711")]
        async with payment.sessions() as session:
            assert (await session.scalars(select(Payment.state))).all() == ["taken"]
        await stage.say(Cancelled("4711"), saga=SAGA)
        await stage.run()
        assert stage.said(Refunded, saga=SAGA) == [Refunded("4711")]
        assert stage.said(Refunded, saga="another") == []
        assert await payment.compensations(SAGA) == [("refund", "done")]
        async with payment.sessions() as session:
            assert (await session.scalars(select(Payment.state))).all() == ["refunded"]


async def test_all_services_together_from_the_order_to_its_end() -> None:
    """Events travel from outbox to inbox without a relay or a broker, in the saga that the first one began."""
    async with Rehearsal() as stage:
        await Shop().enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        assert types(stage) == ["orders.placed", "payment.taken", "warehouse.dispatched", "orders.completed"]
        assert {event.correlationid for event in stage.events} == {SAGA}
        assert [cause.id for cause in stage.events[:-1]] == [effect.causationid for effect in stage.events[1:]]
        # The deadline was cancelled: a month later nothing more has happened.
        await stage.advance(timedelta(days=30))
        assert len(stage.events) == 4


async def test_a_business_failure_is_published_in_place_of_what_the_step_did() -> None:
    """The declined payment leaves no row and cancels the order; there is nothing to refund."""
    async with Rehearsal() as stage:
        payment = await Shop(declined=True).enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        assert types(stage) == ["orders.placed", "payment.declined", "orders.cancelled"]
        async with payment.sessions() as session:
            assert (await session.scalars(select(Payment))).all() == []


async def test_a_deadline_passes_in_virtual_time() -> None:
    """Three days pass in a moment; the deadline fires at its hour, and what was done is undone."""
    shop = Shop(silent=True)
    async with Rehearsal(start=NOON) as stage:
        payment = await shop.enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.advance(timedelta(days=2, hours=23))
        assert types(stage) == ["orders.placed", "payment.taken"]
        await stage.advance(timedelta(hours=2))
        assert types(stage)[2:] == ["orders.overdue", "orders.cancelled", "payment.refunded"]
        assert stage.clock.now() == NOON + timedelta(days=3, hours=1)
        assert stage.events[3].time == NOON + timedelta(days=3)
        assert await payment.compensations(SAGA) == [("refund", "done")]


async def test_a_retry_waits_in_virtual_time() -> None:
    """The courier comes tomorrow: the step is tried every hour of virtual time until then, and once only succeeds."""
    shop = Shop(courier_comes=NOON + timedelta(hours=5, minutes=30))
    async with Rehearsal(start=NOON) as stage:
        await shop.enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        assert types(stage) == ["orders.placed", "payment.taken"]
        await stage.advance(timedelta(days=1))
        assert types(stage)[2:] == ["warehouse.dispatched", "orders.completed"]
        assert len(shop.log) == 7, "at noon, and at each hour until the sixth"


async def test_an_unexpected_exception_fails_the_run() -> None:
    """A mistake in a handler is not mistaken for an event that has not come yet."""
    async with Rehearsal() as stage:
        await Shop(broken=True).enter(stage)
        await stage.say(Placed("4711"))
        with pytest.raises(RehearsalError, match=r"warehouse.*payment\.taken.*a shelf has no height"):
            await stage.run()


async def test_an_unexpected_exception_can_be_part_of_the_play() -> None:
    """Not strict: the message is parked and tried again, as in production, until the fault is mended."""
    shop = Shop(broken=True)
    async with Rehearsal(strict=False) as stage:
        await shop.enter(stage)
        warehouse = stage.services["warehouse"]
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        (parked,) = await warehouse.parked()
        assert (parked.state, parked.reason, parked.attempts) == ("waiting", "failed", 1)
        assert "a shelf has no height" in parked.error
        shop.broken = False
        await stage.advance(timedelta(hours=5))
        assert await warehouse.parked() == []
        assert types(stage)[-1] == "orders.completed"


async def test_services_that_never_stop_talking_are_stopped() -> None:
    """A cycle ends the test with the events that go round, and not the machine's memory."""
    async with Rehearsal(limit=50) as stage:
        service = await stage.add(Shop(chatty=True).orders)
        assert service.name == "orders"

        again = Inbox("again", outbox=Outbox(source="https://again.example"))

        @again.on(Placed, emits=[Dispatched])
        async def dispatch(placed: Placed, ctx: Context) -> None:
            await ctx.publish(Dispatched(placed.order))

        await stage.add(again)
        await stage.say(Placed("4711"))
        with pytest.raises(RehearsalError, match=r"50 deliveries.*orders\.placed"):
            await stage.run()


async def test_an_operator_can_be_played() -> None:
    """A rollback that a person asks for is an event as well, so a test can say it."""
    async with Rehearsal() as stage:
        payment = await Shop(silent=True).enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        await stage.say(RollbackRequested(reason="the customer called", by="ada"), saga=SAGA)
        await stage.run()
        assert stage.said(Refunded) == [Refunded("4711")]
        assert await payment.compensations(SAGA) == [("refund", "done")]


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_and_every_message_twice_end_the_same(seed: int) -> None:
    """What the broker may do does not change the outcome: shuffled, and delivered twice, with two orders at once."""
    shop = Shop()
    async with Rehearsal(seed=seed, duplicates=True) as stage:
        payment = await shop.enter(stage)
        for order in ("1", "2"):
            await stage.say(Placed(order), saga=order, key=order)
        await stage.run()
        assert sorted(types(stage)) == sorted(
            2 * ["orders.placed", "payment.taken", "warehouse.dispatched", "orders.completed"]
        )
        async with payment.sessions() as session:
            assert (await session.scalars(select(Payment.state))).all() == ["taken", "taken"]


async def test_what_is_not_declared_is_seen() -> None:
    """A handler that says what it does not declare makes the map and the lint wrong; the rehearsal notices."""
    async with Rehearsal() as stage:
        await Shop(undeclared=True).enter(stage)
        await stage.say(Placed("4711"))
        await stage.run()
        assert stage.undeclared == [
            "warehouse publishes warehouse.dispatched.v1 when it handles payment.taken.v1, and does not declare it"
        ]
        assert "payment.declined.v1" in stage.unpublished


async def test_a_healthy_play_declares_all_it_says() -> None:
    """Compensations, failures and deadlines are declarations too."""
    async with Rehearsal() as stage:
        await Shop(silent=True).enter(stage)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.advance(timedelta(days=4))
        assert "payment.refunded" in types(stage)
        assert stage.undeclared == []


async def test_the_clocks_are_given_back() -> None:
    """Module-level outboxes and sagas tell the real time again when the rehearsal is over."""
    shop = Shop()
    async with Rehearsal(start=NOON) as stage:
        await shop.enter(stage)
        assert shop.orders.outbox is not None
        assert isinstance(shop.orders.outbox.clock, VirtualClock)
        assert isinstance(shop.order_sagas.clock, VirtualClock)
    assert isinstance(shop.orders.outbox.clock, SystemClock)
    assert isinstance(shop.order_sagas.clock, SystemClock)


async def test_the_same_services_can_be_rehearsed_again() -> None:
    """Each rehearsal has its own databases and its own time, whatever the one before left behind."""
    shop = Shop(silent=True)
    for start in (NOON, NOON - timedelta(days=365)):
        async with Rehearsal(start=start) as stage:
            await shop.enter(stage)
            await stage.say(Placed("4711"), saga=SAGA)
            await stage.advance(timedelta(days=3))
            assert types(stage)[-1] == "payment.refunded"


async def test_a_service_takes_part_once() -> None:
    """Two inboxes of one name would share a queue."""
    async with Rehearsal() as stage:
        await stage.add(Shop().orders)
        with pytest.raises(ConfigurationError, match="orders"):
            await stage.add(Shop().orders)


def test_virtual_time_goes_forward() -> None:
    """Nothing that relies on the clock has to cope with its going back."""
    with pytest.raises(ValueError, match="forward"):
        VirtualClock().advance(timedelta(seconds=-1))


@event("stock.released.v1")
class Released(msgspec.Struct, frozen=True):
    order: str


async def undone_in(seed: int) -> list[type]:
    """Return what two services said when both undid a step of a saga that was cancelled, in this order."""
    said: list[type] = []
    async with Rehearsal(seed=seed) as stage:
        for name, undone in (("payment", Refunded), ("stock", Released)):
            outbox = Outbox(source=f"https://{name}.example")
            sagas = Sagas(name, outbox=outbox)
            inbox = Inbox(name, outbox=outbox, context=sagas.context)

            async def undo(ctx: CompensationContext, *, order: str, undone: type = undone) -> None:
                said.append(undone)

            sagas.compensation(name="undo")(undo)

            async def step(placed: Placed, ctx: StepContext, undo: Any = undo) -> None:
                await ctx.on_rollback(undo, order=placed.order)

            inbox.on(Placed)(step)
            sagas.rolls_back_on(inbox, Cancelled)
            await stage.add(inbox)
        await stage.say(Placed("4711"), saga=SAGA)
        await stage.run()
        await stage.say(Cancelled("4711"), saga=SAGA)
        await stage.run()
    return said


async def test_pitfall_37_compensations_of_several_services_come_in_any_order() -> None:
    """With a seed they are shuffled too, the same way each time: over ten seeds either service is the first."""
    orders = [tuple(await undone_in(seed)) for seed in range(10)]
    assert set(orders) == {(Refunded, Released), (Released, Refunded)}
    assert tuple(await undone_in(3)) == orders[3]
