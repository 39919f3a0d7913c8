"""Wherever users' functions run in the inbox, and whatever they do: counted, visible, and nobody else's trouble."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.core import Event, Observation, event
from sagapost.core.life import ServerLost
from sagapost.inbox import BusinessFailure, Context, Exhausted, Instead, Reject, Retry, SyncContext
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.settings import GROUPS
from sagapost.inbox.handling import pace
from tests.inbox.deeds import DEEDS, SYNC_DEEDS, Outcome
from tests.inbox.harness import OrderPlaced, Recorder, Service, an_event, running, send

LIMIT = timedelta(seconds=2)

Place = Literal["handler", "def handler", "group", "on_exhausted", "instead"]


def service_for(place: Place) -> Service:
    """Return a service whose function at this place does the deed that is its message's note."""
    service = Service()

    async def perform(placed: OrderPlaced, ctx: Context) -> object:
        await ctx.session.execute(service.write(placed.order_id))
        return await DEEDS[placed.note].do(ctx.session, service.effects) if placed.note else None

    async def last_resort(placed: OrderPlaced, ctx: Context, _exhausted: Exhausted) -> None:
        await perform(placed, ctx)

    async def refuse(placed: OrderPlaced, _ctx: Context) -> None:
        raise Reject("no")

    async def do_instead(placed: OrderPlaced, _ctx: Context) -> None:
        async def work(ctx: Context) -> None:
            await perform(placed, ctx)

        raise Instead(work, reason="something else")

    def perform_in_thread(placed: OrderPlaced, ctx: SyncContext) -> object:
        ctx.session.execute(service.write(placed.order_id))
        return SYNC_DEEDS[placed.note][0](ctx.session) if placed.note else None

    functions: dict[Place, Callable[..., object]] = {
        "handler": perform,
        "group": perform,
        "def handler": perform_in_thread,
        "on_exhausted": refuse,
        "instead": do_instead,
    }
    on_exhausted = last_resort if place == "on_exhausted" else None
    service.inbox.on(OrderPlaced, on_exhausted=on_exhausted)(functions[place])
    return service


@pytest.fixture(params=["asyncpg", "psycopg"])
async def engine(request: pytest.FixtureRequest, postgresql_url: str) -> AsyncGenerator[AsyncEngine]:
    """PostgreSQL, which undoes a transaction with a failed statement, under both of its drivers."""
    url = postgresql_url.replace("+asyncpg", f"+{request.param}")
    engine = create_async_engine(url, pool_size=20)
    yield engine
    await engine.dispose()


async def _hold_a_lock(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT pg_advisory_xact_lock(4711)"))


@pytest.mark.parametrize("place", ["handler", "def handler", "group", "on_exhausted", "instead"])
async def test_whatever_a_function_does_is_counted_and_hurts_nobody(
    engine: AsyncEngine, broker: MemoryBroker, place: Place
) -> None:
    """Each deed between two good messages. What failed is a dead letter that says what happened, after one attempt and
    without effect (but for what the function itself has committed); what did not fail has its effect once; all others
    have theirs; the consumer still runs.
    """
    service = service_for(place)
    expected: Mapping[str, tuple[Outcome, str]] = (
        {name: (deed[1], deed[2]) for name, deed in SYNC_DEEDS.items()}
        if place == "def handler"
        else {name: (deed.outcome, deed.says) for name, deed in DEEDS.items()}
    )
    if place in {"on_exhausted", "instead"}:
        # What these return is nobody's: the library calls them with `await`.
        expected = {name: each for name, each in expected.items() if not name.startswith("returns")}
    await service.install(engine)
    messages = [an_event(OrderPlaced(name, note=name), id=name) for name in expected]
    good = [an_event(OrderPlaced(f"good {n}")) for n in range(len(messages) + 1)]
    mixed = [good[0], *(each for pair in zip(messages, good[1:], strict=True) for each in pair)]
    await send(broker, service, *mixed)
    batch = 7 if place == "group" else 1
    async with engine.connect() as locking:
        await _hold_a_lock(locking)
        async with running(service, engine, broker, batch=batch, concurrency=6, handler_timeout=LIMIT) as consumer:
            await consumer.settled(len(mixed))
            await send(broker, service, an_event(OrderPlaced("after")))
            await consumer.settled(len(mixed) + 1)
    written = await service.written(engine)
    parked = {row.event_id: row for row in await service.parked(engine)}
    print(f"\n{place}")
    for name, (outcome, _) in expected.items():
        row = parked.get(name)
        what = "done" if row is None else f"{row.state}, {row.reason}, {row.attempts}: {row.error[:90]!r}"
        print(f"  {name:34} {outcome:15} {written.count(name)} effects  {what}")
    _check(expected, written, parked, place)
    effects = [each for each in written if each.startswith("good") or each == "after"]
    if place == "group":
        # Those that shared a transaction with one that committed it are left to a person, and none is lost.
        assert len(set(effects)) == len(effects)
        aside = {msgspec.json.decode(row.data)["order_id"] for row in parked.values() if row.event_id not in expected}
        assert {f"good {n}" for n in range(len(good))} <= set(effects) | aside
    else:
        assert sorted(effects) == sorted([*(f"good {n}" for n in range(len(good))), "after"])


REPEATED = {"takes too long", "swallows its time limit", "waits for a lock", "closes the driver's connection"}
"""Deeds that cost the transaction of all: each is handled alone then, the function that did it once more too."""


def _most(_: pace.Pace) -> int:
    """Return the size of the largest group, whatever was measured."""
    return pace.MOST


@pytest.mark.parametrize("name", DEEDS)
async def test_whatever_a_function_does_in_a_group_with_savepoints_its_neighbours_notice_nothing(
    engine: AsyncEngine, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One deed among messages that share its transaction: what comes of it is what comes of it alone, after one try;
    the others have their effects once, and their functions ran once, unless the deed cost the transaction of all.
    """
    monkeypatch.setattr(pace, "_QUICK", math.inf)
    monkeypatch.setattr(pace.Pace, "size", _most)
    deed, service, calls = DEEDS[name], Service(), list[str]()

    @service.inbox.on(OrderPlaced)
    async def counted(placed: OrderPlaced, ctx: Context) -> object:
        calls.append(placed.order_id)
        await ctx.session.execute(service.write(placed.order_id))
        return await DEEDS[placed.note].do(ctx.session, service.effects) if placed.note else None

    await service.install(engine)
    good = [an_event(OrderPlaced(f"good {n}")) for n in range(12)]
    done = an_event(OrderPlaced(name, note=name), id=name)
    await send(broker, service, *good[:8], done, *good[8:])
    async with engine.connect() as locking:
        await _hold_a_lock(locking)
        async with running(service, engine, broker, batch=GROUPS, concurrency=1, handler_timeout=LIMIT) as consumer:
            await consumer.settled(13)
            undone = consumer.seen.of(obs.GroupUndone)
            steps = consumer.seen.of(obs.DeliveryStep)
    before = [each for each in steps[: _begun(steps, name)] if isinstance(each, _ENDS_OF_GROUPS)]
    assert isinstance(before[-1], obs.GroupStarted)
    _check({name: (deed.outcome, deed.says)}, await service.written(engine), await _by_id(service, engine), "handler")
    effects = [each for each in await service.written(engine) if each.startswith("good")]
    assert sorted(effects) == sorted(f"good {n}" for n in range(12))
    if deed.outcome != "broke-contract" or not undone:
        assert bool(undone) is (name in REPEATED)
        assert len(calls) == 13 or name in REPEATED


_ENDS_OF_GROUPS = obs.GroupStarted | obs.GroupCommitted | obs.GroupUndone


def _begun(steps: list[obs.DeliveryStep], name: str) -> int:
    return next(n for n, each in enumerate(steps) if isinstance(each, obs.Started) and each.event_id == name)


async def _by_id(service: Service, engine: AsyncEngine) -> dict[str, Any]:
    return {row.event_id: row for row in await service.parked(engine)}


def _check(
    expected: Mapping[str, tuple[Outcome, str]], written: list[str], parked: Mapping[str, Any], place: Place
) -> None:
    wrong: list[str] = []
    for name, (outcome, says) in expected.items():
        row = parked.get(name)
        if (
            row is not None
            and place == "group"
            and row.error.startswith(("In a group commit", "It was not handled yet"))
        ):
            # It shared a transaction with one that has committed it.
            continue
        if outcome == "done":
            right = row is None and written.count(name) == 1
        else:
            committed = place == "group" or name.startswith(("says COMMIT", "commits and", "commits the"))
            reason = "rejected" if place == "on_exhausted" and outcome == "failed" else outcome
            right = (
                row is not None
                and (row.state, row.reason, row.attempts) == ("dead", reason, 1)
                and written.count(name) <= committed
                and says in row.error
                and len(row.error) < 6_000
                and "\x00" not in row.error
            )
        if not right:
            wrong.append(name)
    assert wrong == []


class Validated(msgspec.Struct):
    """A payload whose own reader ends the process, as a validator might."""

    order_id: str

    @classmethod
    def model_validate_json(cls, data: bytes) -> object:
        """Read it, pydantic's way."""
        raise SystemExit(data[:0].decode())


@event("orders.order-placed.v0")
class OldOrder(msgspec.Struct):
    """What is converted."""

    order_id: str


class BrokenContext(Context):
    """A context of the service's own that cannot be made for some events."""

    __slots__ = ()

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.event.id == "context":
            raise SystemExit(0)


class Disturbed(Recorder):
    """An observer that ends the process when something is handled."""

    def notify(self, event: Observation, /) -> None:
        super().notify(event)
        if isinstance(event, obs.Handled):
            raise SystemExit(0)


async def test_what_runs_around_a_handler_ends_nothing_either(engine: AsyncEngine, broker: MemoryBroker) -> None:
    """Readers, conversions, contexts, what is around a handler, reasons and failure events of the wrong kind: each is
    a dead letter with its reason, and an observer that exits changes nothing.
    """

    @contextmanager
    def around(event: Event) -> Generator[None]:
        if event.id == "around":
            raise SystemExit(0)
        yield

    service = Service(context=BrokenContext, around=around)

    @service.inbox.on("orders.validated.v1", payload=Validated)
    async def never(_event: object, _ctx: Context) -> None: ...

    @service.inbox.upcast(OldOrder, to=OrderPlaced)
    def convert(_old: OldOrder) -> OrderPlaced:
        raise KeyboardInterrupt

    @service.inbox.on(OrderPlaced)
    async def handle(placed: OrderPlaced, ctx: Context) -> None:
        await ctx.session.execute(service.write(placed.order_id))
        match ctx.event.id:
            case "reason":
                raise Reject(ValueError("no text"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            case "wait":
                raise Retry(timedelta.max)
            case "failure":
                raise BusinessFailure(object())
            case _:
                return

    order = OrderPlaced("o")
    bad = {
        "reader": ("undecodable", "the class raised SystemExit"),
        "conversion": ("undecodable", "raised KeyboardInterrupt"),
        "around": ("failed", "SystemExit"),
        "context": ("failed", "SystemExit"),
        "reason": ("rejected", "no text"),
        "wait": ("failed", "Retry(after=)"),
        "failure": ("failed", "object has no event type"),
    }
    events = {each: an_event(order, id=each) for each in bad}
    events["reader"] = an_event(order, id="reader", type="orders.validated.v1")
    events["conversion"] = an_event(OldOrder("o"), id="conversion")
    await service.install(engine)
    await send(broker, service, *events.values(), an_event(OrderPlaced("good")))
    async with running(service, engine, broker, seen=Disturbed()) as consumer:
        await consumer.settled(len(bad) + 1)
    parked = {row.event_id: row for row in await service.parked(engine)}
    assert {each: (row.state, row.reason) for each, row in parked.items()} == {
        each: ("dead", reason) for each, (reason, _) in bad.items()
    }
    for each, (_, says) in bad.items():
        assert says in parked[each].error, each
    assert await service.written(engine) == ["good"]


async def test_parking_does_not_wait_for_what_the_function_waited_for(
    engine: AsyncEngine, broker: MemoryBroker
) -> None:
    """A statement over the time limit is given up on the server too: nobody holds the message's dedup key then."""
    service = service_for("handler")
    await service.install(engine)
    name = "waits for a lock"
    await send(broker, service, an_event(OrderPlaced(name, note=name)))
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with engine.connect() as locking:
        await _hold_a_lock(locking)
        async with running(service, engine, broker, handler_timeout=LIMIT) as consumer:
            await consumer.seen.until(obs.Parked)
            assert (await locking.execute(waiting)).scalar_one() == 0
            assert not consumer.seen.of(ServerLost)
