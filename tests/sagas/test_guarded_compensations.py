"""Whatever a compensation does is counted and visible, and no other saga's trouble; on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import anyio
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from sagapost.core import Backoff
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.sagas import CompensationContext, Compensator, CompensatorSettings, Sagas, SagaTables
from sagapost.sagas import observations as obs
from tests.inbox.deeds import DEEDS, Outcome
from tests.inbox.harness import Recorder

SETTINGS = CompensatorSettings(
    max_attempts=2,
    poll_interval=timedelta(milliseconds=50),
    timeout=timedelta(seconds=2),
    retry=Backoff(base=timedelta(milliseconds=1), cap=timedelta(milliseconds=2)),
)


class Shop:
    """A service whose one compensation does the deed that it is given."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.metadata = MetaData()
        self.engine = engine
        self.outbox = Outbox(source="https://shop.example", tables=OutboxTables(self.metadata))
        self.tables = SagaTables(self.metadata)
        self.sagas = Sagas("shop", outbox=self.outbox, tables=self.tables, announce=True)
        self.refunds = Table(
            "refunds",
            self.metadata,
            Column("id", Integer, primary_key=True),
            Column("order_id", String(64), nullable=False),
        )
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)
        self.seen = Recorder()

        @self.sagas.compensation()
        async def refund(ctx: CompensationContext, *, deed: str) -> Any:
            await ctx.session.execute(self.refunds.insert().values(order_id=deed or ctx.saga))
            return await DEEDS[deed].do(ctx.session, self.refunds) if deed else None

        self.refund = refund

    async def install(self) -> None:
        """Create the tables."""
        parts = [self.outbox.tables.part, self.tables.part]
        async with self.engine.begin() as connection:
            await connection.run_sync(install_schema, self.tables.versions, parts)
            await connection.run_sync(self.refunds.create)

    async def fail(self, saga: str, deed: str = "") -> None:
        """Let a saga fail whose one step is to be undone with this deed."""
        async with self.sessions.begin() as session:
            await self.sagas.record(session, saga, self.refund, {"deed": deed}, step_event=None)
            await self.sagas.begin_rollback(session, saga, reason="it failed", cause=None)

    async def ledger(self) -> dict[str, tuple[str, str, int, str]]:
        """Return state of the saga and of its intent, attempts and last error, by saga."""
        states, intents = self.tables.states, self.tables.compensations
        statement = select(
            states.c.saga, states.c.state, intents.c.state.label("intent"), intents.c.attempts, intents.c.last_error
        ).join_from(states, intents, states.c.saga == intents.c.saga)
        async with self.engine.connect() as connection:
            rows = (await connection.execute(statement)).all()
        return {row.saga: (row.state, row.intent, row.attempts, row.last_error or "") for row in rows}


@pytest.fixture(params=["asyncpg", "psycopg"])
async def shop(request: pytest.FixtureRequest, postgresql_url: str) -> AsyncGenerator[Shop, None]:
    """The shop, under each driver."""
    engine = create_async_engine(postgresql_url.replace("+asyncpg", f"+{request.param}"), pool_size=20)
    shop = Shop(engine)
    await shop.install()
    yield shop
    await engine.dispose()


EXPECTED: dict[str, Outcome] = {
    **{name: deed.outcome for name, deed in DEEDS.items()},
    "returns a value": "broke-contract",
    "returns a coroutine": "broke-contract",
}


async def test_whatever_a_compensation_does_is_counted_and_hurts_nobody(shop: Shop) -> None:
    """Each deed in a saga of its own, among as many good ones. What fails is counted twice, then the saga is stuck and
    the ledger says why; what breaks the contract is stuck at once; nothing of either remains but what the function
    itself has committed, once. The good ones are rolled back, and the compensator still runs.
    """
    for name in DEEDS:
        await shop.fail(name, name)
        await shop.fail(f"good {name}")
    compensator = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    bad = [name for name, outcome in EXPECTED.items() if outcome != "done"]
    async with shop.engine.connect() as locking:
        await locking.execute(text("SELECT pg_advisory_xact_lock(4711)"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(compensator.run)
            await shop.seen.until(obs.SagaRolledBack, 2 * len(DEEDS) - len(bad))
            await shop.seen.until(obs.SagaStuck, len(bad))
            await shop.fail("after")
            await shop.seen.until(obs.SagaRolledBack, 2 * len(DEEDS) - len(bad) + 1)
            compensator.stop()
    ledger = await shop.ledger()
    async with shop.engine.connect() as connection:
        refunds = list((await connection.execute(select(shop.refunds.c.order_id))).scalars())
        told = (await connection.execute(select(shop.outbox.tables.outbox.c.data))).scalars().all()
    print()
    wrong: list[str] = []
    for name, outcome in EXPECTED.items():
        state, intent, attempts, error = ledger[name]
        print(f"  {name:34} {outcome:15} {refunds.count(name)} effects  {state}, {intent}, {attempts}: {error[:90]!r}")
        if outcome == "done":
            right = (state, intent, attempts, refunds.count(name)) == ("rolled_back", "done", 1, 1)
        else:
            committed = name.startswith(("says COMMIT", "commits and", "commits the"))
            says = "returned a" if name.startswith("returns") else DEEDS[name].says
            right = (
                (state, attempts) == ("stuck", 1 if outcome == "broke-contract" else 2)
                and refunds.count(name) <= committed
                and says.replace("The handler", "") in error
                and len(error) < 6_000
                and "\x00" not in error
            )
        if not right:
            wrong.append(name)
    assert wrong == []
    good = {saga: row[:3] for saga, row in ledger.items() if saga.startswith("good") or saga == "after"}
    assert set(good.values()) == {("rolled_back", "done", 1)}
    assert all(refunds.count(saga) == 1 for saga in good)
    assert not any(b"cannot do it" in data for data in told), "an error's text leaves the service"


async def test_steps_of_a_saga_do_not_wait_for_its_compensation(shop: Shop) -> None:
    """A compensation waits for somebody: a late step of the same saga records its undoing meanwhile, and a person's
    settling of the intent waits; both are done in order afterwards.
    """
    release, started = anyio.Event(), anyio.Event()

    @shop.sagas.compensation()
    async def slow(ctx: CompensationContext) -> None:
        started.set()
        await release.wait()

    async with shop.sessions.begin() as session:
        await shop.sagas.record(session, "s", slow, {}, step_event=None)
        await shop.sagas.begin_rollback(session, "s", reason="it failed", cause=None)
    compensator = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compensator.run)
        await started.wait()
        with anyio.fail_after(10):
            async with shop.sessions.begin() as session:
                await shop.sagas.record(session, "s", shop.refund, {"deed": ""}, step_event=None)
        release.set()
        await shop.seen.until(obs.SagaRolledBack)
        compensator.stop()
    undone = [event.compensation for event in shop.seen.of(obs.Compensated)]
    assert undone == ["slow", "refund"]


async def test_a_compensator_that_is_cancelled_counts_nothing(shop: Shop) -> None:
    """Our own cancellation is no failure of the function: nothing is counted, and the next one undoes it."""
    started = anyio.Event()
    hang = True

    @shop.sagas.compensation()
    async def slow(ctx: CompensationContext) -> None:
        started.set()
        if hang:
            await anyio.sleep_forever()

    async with shop.sessions.begin() as session:
        await shop.sagas.record(session, "s", slow, {}, step_event=None)
        await shop.sagas.begin_rollback(session, "s", reason="it failed", cause=None)
    compensator = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compensator.run)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert (await shop.ledger())["s"] == ("rolling_back", "pending", 0, "")
    hang = False
    again = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(again.run)
        await shop.seen.until(obs.SagaRolledBack)
        again.stop()
    assert (await shop.ledger())["s"] == ("rolled_back", "done", 1, "")


async def test_pitfall_35_an_old_compensator_uses_up_no_tries_of_what_it_does_not_know(shop: Shop) -> None:
    """It says so once, looks again, counts nothing, and undoes what it knows; the version that has it is done with the
    first attempt. After the time that was set the saga is stuck, and the reason is in the ledger.
    """
    other = Sagas("shop", outbox=shop.outbox, tables=shop.tables)

    @other.compensation()
    async def pay_back(ctx: CompensationContext) -> None:
        await ctx.session.execute(shop.refunds.insert().values(order_id=f"paid back {ctx.saga}"))

    async def fail(saga: str) -> None:
        async with shop.sessions.begin() as session:
            await other.record(session, saga, pay_back, {}, step_event=None)
            await other.begin_rollback(session, saga, reason="it failed", cause=None)

    await fail("new")
    old = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    for _ in range(SETTINGS.max_attempts + 2):
        async with shop.engine.begin() as connection:
            await connection.execute(text("UPDATE saga_states SET due_at = now()"))
        assert await old.step()
    assert len(shop.seen.of(obs.CompensationNotKnown)) == 1
    await shop.fail("old")
    assert await old.step()
    ledger = await shop.ledger()
    assert ledger["old"][:3] == ("rolled_back", "done", 1)
    assert ledger["new"][:3] == ("rolling_back", "pending", 0)
    assert "has no compensation named 'pay_back'" in ledger["new"][3]
    async with shop.engine.begin() as connection:
        await connection.execute(text("UPDATE saga_states SET due_at = now() WHERE state = 'rolling_back'"))
    assert await Compensator(other, shop.engine, settings=SETTINGS).step()
    assert (await shop.ledger())["new"][:3] == ("rolled_back", "done", 1)
    await fail("never")
    impatient = CompensatorSettings(unknown_for=timedelta(0))
    assert await Compensator(shop.sagas, shop.engine, settings=impatient).step()
    state, intent, _, error = (await shop.ledger())["never"]
    assert (state, intent) == ("stuck", "stuck")
    assert "have another one" in error


async def test_a_compensation_has_one_idempotency_key_for_all_its_tries(shop: Shop) -> None:
    """A gateway that charged back and did not answer is asked again under the same key; each step has its own."""
    keys: list[tuple[int, str]] = []

    @shop.sagas.compensation()
    async def charge_back(ctx: CompensationContext) -> None:
        keys.append((ctx.attempt, ctx.idempotency_key))
        if ctx.attempt == 1:
            raise TimeoutError

    async with shop.sessions.begin() as session:
        for _ in range(2):
            await shop.sagas.record(session, "s1", charge_back, {}, step_event=None)
        await shop.sagas.begin_rollback(session, "s1", reason="it failed", cause=None)
    compensator = Compensator(shop.sagas, shop.engine, settings=SETTINGS, observer=shop.seen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(compensator.run)
        await shop.seen.until(obs.SagaRolledBack)
        compensator.stop()
    assert [attempt for attempt, _ in keys] == [1, 2, 1, 2]
    (_, first), (_, again), (_, second), (_, second_again) = keys
    assert first == again
    assert second == second_again
    assert first != second
