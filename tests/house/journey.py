"""How far an event travels through the library: from `publish` to the next service's commit and the tracker.

One event is published and handled to warm up; the second one is followed. Counted are the modules whose code runs
meanwhile, and the calls of the library between the receipt of a message and the user's function.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import CodeType, FrameType

import anyio
import anyio.lowlevel
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core import Observation
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Context, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.sagas.tracker import Tracker, TrackerConsumer

__all__ = ["Journey", "follow"]

HAND_OVER = "feed"
"""What the receiving side of the inbox calls to give a message to its workers."""

_QUIET = timedelta(minutes=10)
"""Between looks that have nothing to do with the event."""


class Journey:
    """What an event passed."""

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.calls: list[str] = []
        """The library's functions on the stack when a message is handed to a worker, then those when the worker calls
        the user's function; outermost first."""


def _where(code: CodeType) -> str | None:
    parts = Path(code.co_filename).parts
    if "sagapost" not in parts or "site-packages" in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("sagapost")
    return ".".join(parts[last:]).removesuffix(".py")


def _stack(frame: FrameType | None) -> list[str]:
    """The library's functions on a stack, outermost first."""
    calls: list[str] = []
    while frame is not None:
        where = _where(frame.f_code)
        if where is not None:
            calls.append(f"{where}.{frame.f_code.co_name}")
        frame = frame.f_back
    return calls[::-1]


@contextmanager
def _noting(journey: Journey) -> Generator[None]:
    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        where = _where(frame.f_code)
        if where is None:
            return
        journey.modules.add(where)
        if where.startswith("sagapost.inbox.") and frame.f_code.co_name == HAND_OVER:
            journey.calls = _stack(frame)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


class _Waiting:
    """Lets a test wait for an observation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Wake who waits."""
        if type(event).__name__ == self.name:
            self.seen.set()


async def _install(engine: AsyncEngine, outbox: OutboxTables, inbox: InboxTables) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, outbox.versions, [outbox.part, inbox.part])


async def _follow(folder: Path) -> Journey:
    journey = Journey()
    metadata = MetaData()
    outbox_tables, inbox_tables = OutboxTables(metadata), InboxTables(metadata)
    outbox = Outbox(source="https://orders.example", tables=outbox_tables)
    inbox = Inbox("warehouse", outbox=outbox, tables=inbox_tables)

    @inbox.on("orders.placed.v1")
    async def reserve(_placed: dict[str, object], ctx: Context) -> None:
        journey.calls += _stack(inspect.currentframe())

    url = f"sqlite+aiosqlite:///{folder / 'shop.db'}"
    engine, tracking = create_async_engine(url), create_async_engine(f"sqlite+aiosqlite:///{folder / 'tracker.db'}")
    await _install(engine, outbox_tables, inbox_tables)
    broker, tracker = MemoryBroker(), Tracker(tracking)
    await tracker.install()
    handled, folded, settled = _Waiting("Handled"), _Waiting("Folded"), _Waiting("Settled")
    consumer = Consumer(
        inbox, engine=engine, broker=broker, settings=ConsumerSettings(poll_interval=_QUIET), observer=handled
    )
    follower = TrackerConsumer(tracker, broker, observer=folded)
    await broker.declare(inbox.queue, follower.queue)
    store = SQLiteOutboxStore(url, tables=outbox_tables)
    relay = Relay(store, broker, settings=RelaySettings(poll_interval=timedelta(seconds=1)), observer=settled)

    async def send() -> None:
        for each in (handled, folded, settled):
            each.seen = anyio.Event()
        async with AsyncSession(engine) as session, session.begin():
            await outbox.publish(session, {"order": 1}, type="orders.placed.v1", key="1", correlationid="1")
        with anyio.fail_after(20):
            for each in (handled, folded, settled):
                await each.seen.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        tasks.start_soon(follower.run)
        tasks.start_soon(relay.run)
        await send()
        await anyio.lowlevel.checkpoint()
        with _noting(journey):
            await send()
        tasks.cancel_scope.cancel()
    await engine.dispose()
    await tracking.dispose()
    return journey


def follow() -> Journey:
    """Follow one event on SQLite and the broker in memory."""
    with tempfile.TemporaryDirectory() as folder:
        return anyio.run(_follow, Path(folder))
