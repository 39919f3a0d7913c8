"""The compensation ledger: intents written with their step, undone in reverse, recorded for good."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Integer, String, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import event
from sagapost.core.backoff import Backoff
from sagapost.core.errors import ConfigurationError
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas import CompensationContext, Compensator, CompensatorSettings, Sagas, SagaTables
from sagapost.sagas import observations as obs
from sagapost.sagas.compensations import CompensationFunction
from sagapost.sagas.operator import history, retry_stuck, settle

SAGA = "order-4711"
FAST = CompensatorSettings(
    poll_interval=timedelta(milliseconds=5),
    max_attempts=3,
    retry=Backoff(base=timedelta(microseconds=1), cap=timedelta(microseconds=1)),
)


class Base(DeclarativeBase):
    """The service's models."""


class Account(Base):
    """Money in cents."""

    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    cents: Mapped[int] = mapped_column(Integer)


outbox_tables = OutboxTables(Base.metadata)
saga_tables = SagaTables(Base.metadata)


@event("payment.payment-refunded.v1")
@dataclass
class PaymentRefunded:
    """Said when the money is back."""

    payment_id: str


@dataclass
class Seen:
    """Collects what the compensator says."""

    events: list[Observation] = field(default_factory=list[Observation])

    def notify(self, event: Observation, /) -> None:
        self.events.append(event)


@dataclass
class Service:
    """One service with a ledger, and knobs for its compensations."""

    engine: AsyncEngine
    sagas: Sagas = field(init=False)
    sessions: async_sessionmaker[AsyncSession] = field(init=False)
    calls: list[tuple[str, object]] = field(default_factory=list[tuple[str, object]])
    failing: set[str] = field(default_factory=set[str])
    seen: Seen = field(default_factory=Seen)

    def __post_init__(self) -> None:
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        outbox = Outbox(source="https://payment.example", tables=outbox_tables)
        self.sagas = Sagas("payment", outbox=outbox, tables=saga_tables)

        @self.sagas.compensation(emits=[PaymentRefunded])
        async def refund(ctx: CompensationContext, *, payment_id: UUID, amount: Decimal) -> None:
            account = await ctx.session.get_one(Account, "customer")
            account.cents += int(amount * 100)
            await ctx.session.flush()
            await ctx.publish(PaymentRefunded(str(payment_id)))
            self.calls.append(("refund", (payment_id, amount)))
            if "refund" in self.failing:
                raise RuntimeError("the bank does not answer")

        @self.sagas.compensation()
        async def revoke(ctx: CompensationContext, *, points: int) -> None:
            self.calls.append(("revoke", points))
            if "revoke" in self.failing:
                raise RuntimeError("no such member")

        self.refund, self.revoke = refund, revoke
        self.compensator = Compensator(self.sagas, self.engine, settings=FAST, observer=self.seen)

    async def record(self, name: str, **arguments: object) -> None:
        """A step that does something and records its undoing."""
        async with self.sessions.begin() as session:
            functions: dict[str, CompensationFunction] = {"refund": self.refund, "revoke": self.revoke}
            await self.sagas.record(session, SAGA, functions[name], arguments, step_event=f"step-{name}")

    async def roll_back(self, reason: str = "item missing") -> bool:
        async with self.sessions.begin() as session:
            return await self.sagas.begin_rollback(session, SAGA, reason=reason, cause="event-1")

    async def undo_all(self) -> None:
        """Run the compensator until nothing is due."""
        while await self.compensator.step():
            pass

    async def state(self) -> str | None:
        async with self.sessions() as session:
            states = saga_tables.states
            found: str | None = await session.scalar(select(states.c.state).where(states.c.saga == SAGA))
            return found

    async def record_of(self) -> list[tuple[str, str, int]]:
        async with self.sessions() as session:
            rows = await history(self.sagas, session, SAGA)
            return [(row["name"], row["state"], row["attempts"]) for row in rows]

    async def published(self) -> list[tuple[str, str | None]]:
        async with self.sessions() as session:
            table = outbox_tables.outbox
            rows = await session.execute(select(table.c.type, table.c.correlationid).order_by(table.c.position))
            return [(row.type, row.correlationid) for row in rows]

    async def cents(self) -> int:
        async with self.sessions() as session:
            return (await session.get_one(Account, "customer")).cents


@pytest.fixture(params=["sqlite", "postgresql"])
async def service(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Service, None]:
    """A service on each database."""
    if request.param == "sqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'payment.db'}")
    else:
        engine = create_async_engine(request.getfixturevalue("postgresql_url"))
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, outbox_tables.versions, [outbox_tables.part, saga_tables.part])
        await connection.run_sync(Account.metadata.tables["accounts"].create)
    made = Service(engine)
    async with made.sessions.begin() as session:
        session.add(Account(name="customer", cents=0))
    yield made
    await engine.dispose()


async def test_compensations_run_in_reverse_order_with_their_arguments_and_emit_in_the_saga(
    service: Service,
) -> None:
    """The last step is undone first, arguments come back as the types they were declared as, events carry the saga."""
    payment = uuid4()
    await service.record("refund", payment_id=payment, amount=Decimal("12.34"))
    await service.record("revoke", points=7)
    assert await service.roll_back()
    await service.undo_all()
    assert service.calls == [("revoke", 7), ("refund", (payment, Decimal("12.34")))]
    assert await service.state() == "rolled_back"
    assert await service.record_of() == [("refund", "done", 1), ("revoke", "done", 1)]
    assert await service.published() == [("payment.payment-refunded.v1", SAGA)]
    assert await service.cents() == 1234


async def test_a_compensation_and_its_mark_are_one_transaction(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks off after the function returned leaves neither its changes nor a mark; the next try does both."""
    await service.record("refund", payment_id=uuid4(), amount=Decimal("1.00"))
    await service.roll_back()

    async def break_off(*_: object) -> None:
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as patch:
        patch.setattr(service.sagas, "tell", break_off)
        assert await service.compensator.step()
    assert await service.cents() == 0
    assert await service.record_of() == [("refund", "pending", 1)]
    await service.undo_all()
    assert await service.cents() == 100
    assert await service.record_of() == [("refund", "done", 2)]


async def test_an_intent_of_a_step_that_rolled_back_is_never_undone(service: Service) -> None:
    """The intent lives and dies with its step's transaction."""

    async def failing_step() -> None:
        async with service.sessions.begin() as session:
            await service.sagas.record(session, SAGA, service.revoke, {"points": 1}, step_event=None)
            raise RuntimeError("step failed")

    with pytest.raises(RuntimeError, match="step failed"):
        await failing_step()
    await service.roll_back()
    await service.undo_all()
    assert service.calls == []
    assert await service.record_of() == []


async def test_a_late_step_of_a_saga_that_is_rolled_back_undoes_itself(service: Service) -> None:
    """A step that commits after the rollback has ended is due at once; nothing waits for a second failure."""
    assert await service.roll_back()
    assert await service.state() == "rolled_back"
    await service.record("revoke", points=3)
    assert await service.state() == "rolling_back"
    await service.undo_all()
    assert service.calls == [("revoke", 3)]
    assert await service.state() == "rolled_back"


async def test_a_second_failure_changes_nothing(service: Service) -> None:
    """Several failure events of one saga, or one twice, start one rollback; the first reason stands."""
    await service.record("revoke", points=3)
    assert await service.roll_back("first")
    assert not await service.roll_back("second")
    await service.undo_all()
    assert not await service.roll_back("third")
    assert service.calls == [("revoke", 3)]
    async with service.sessions() as session:
        assert await session.scalar(select(saga_tables.states.c.rollback_reason)) == "first"


async def test_a_failing_compensation_leaves_nothing_is_retried_and_then_waits_for_a_person(service: Service) -> None:
    """Each failed attempt is undone and counted; after the last the saga is stuck, with the reason in the record."""
    await service.record("revoke", points=1)
    await service.record("refund", payment_id=uuid4(), amount=Decimal(5))
    service.failing.add("refund")
    await service.roll_back()
    await service.undo_all()
    assert [name for name, _ in service.calls] == ["refund", "refund", "refund"]
    assert await service.state() == "stuck"
    assert await service.record_of() == [("revoke", "pending", 0), ("refund", "stuck", 3)]
    assert await service.cents() == 0
    assert await service.published() == []
    assert [type(e) for e in service.seen.events] == [
        obs.CompensationFailed,
        obs.CompensationFailed,
        obs.SagaStuck,
    ]

    service.failing.clear()
    async with service.sessions.begin() as session:
        assert await retry_stuck(service.sagas, session, SAGA) == 1
    await service.undo_all()
    assert await service.record_of() == [("revoke", "done", 1), ("refund", "done", 1)]
    assert await service.cents() == 500
    assert await service.state() == "rolled_back"


async def test_a_person_can_settle_a_step_and_the_record_says_who_and_why(service: Service) -> None:
    """What cannot be undone by code is decided by a person, signed, and the older steps go on."""
    await service.record("revoke", points=1)
    await service.record("refund", payment_id=uuid4(), amount=Decimal(5))
    service.failing.add("refund")
    await service.roll_back()
    await service.undo_all()
    async with service.sessions.begin() as session:
        open_id = (await history(service.sagas, session, SAGA))[1]["id"]
        with pytest.raises(ConfigurationError, match="note"):
            await settle(service.sagas, session, SAGA, open_id, by="ada", note=" ")
        await settle(service.sagas, session, SAGA, open_id, by="ada", note="paid back in cash")
    await service.undo_all()
    async with service.sessions() as session:
        revoked, refunded = await history(service.sagas, session, SAGA)
        audit = service.sagas.tables.audit
        rows = await session.execute(select(audit.decisions))
        (decided,) = audit.entries(rows.all())
    assert (refunded["state"], refunded["decided_by"], refunded["note"]) == ("settled", "ada", "paid back in cash")
    assert (decided.desk, decided.action, decided.subject, decided.actor) == ("saga", "resolve", SAGA, "ada")
    assert decided.did == f"settled the compensation {open_id}"
    assert revoked["state"] == "done"
    assert await service.state() == "rolled_back"


async def test_arguments_are_checked_when_the_step_runs(service: Service) -> None:
    """A compensation that could not be called is found while the step can still fail, not days later."""
    async with service.sessions.begin() as session:
        with pytest.raises(ConfigurationError, match="points"):
            await service.sagas.record(session, SAGA, service.revoke, {}, step_event=None)

        async def stranger(ctx: CompensationContext) -> None: ...

        with pytest.raises(ConfigurationError, match="no compensation"):
            await service.sagas.record(session, SAGA, stranger, {}, step_event=None)


async def test_a_compensation_that_no_version_has_gets_stuck(service: Service) -> None:
    """A deployment that drops a compensation loses nothing: the record says what is missing."""
    await service.record("revoke", points=1)
    await service.roll_back()
    without = Sagas("payment", outbox=service.sagas.outbox, tables=saga_tables)
    # None is waited for that may know it.
    settings = replace(FAST, unknown_for=timedelta(0))
    compensator = Compensator(without, service.engine, settings=settings, observer=service.seen)
    while await compensator.step():
        pass
    assert await service.record_of() == [("revoke", "stuck", 1)]
    gone = service.seen.events[-1]
    assert isinstance(gone, obs.SagaStuck)
    assert "revoke" in gone.error
