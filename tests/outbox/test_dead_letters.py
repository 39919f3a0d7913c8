"""Redriving and discarding dead letters, with a relay running."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker
from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.sqlite import SQLiteOutboxStore
from sagapost.core.audit import Decision
from sagapost.core.backoff import Backoff
from sagapost.core.errors import NotFoundError
from sagapost.core.outbox_store import OutboxStore
from sagapost.core.schema import install_schema
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.dead_letters import DEAD_LETTERS, DeadLetters
from sagapost.outbox.relay import Relay, RelaySettings
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.relay.settings import DeadLetterPolicy
from tests.relay.shop import EVERYTHING, Watch, numbers, received, running

WHY = Decision("ada", "the queue is bound now")
EVERY = DEAD_LETTERS.select()
SOON = Backoff(base=timedelta(milliseconds=20), cap=timedelta(milliseconds=20))


class Shop:
    """An outbox on one of the databases."""

    def __init__(self, engine: AsyncEngine, url: str) -> None:
        self.engine = engine
        self.url = url
        self.tables = OutboxTables()
        self.outbox = Outbox(source="https://shop.example", tables=self.tables)
        self.dead = DeadLetters(self.tables)

    def store(self) -> OutboxStore:
        if self.url.startswith("sqlite"):
            return SQLiteOutboxStore(self.url, tables=self.tables)
        return PostgreSQLOutboxStore(self.url, tables=self.tables)

    def relay(self, broker: MemoryBroker, watch: Watch, policy: DeadLetterPolicy) -> Relay:
        settings = RelaySettings(
            retry=SOON, max_attempts=2, on_dead=policy, lease_ttl=timedelta(seconds=2), serial_keys=True
        )
        return Relay(self.store(), broker, settings=settings, observer=watch)

    async def say(self, *said: int, key: str = "k") -> None:
        async with self.engine.begin() as connection:
            for number in said:
                await self.outbox.publish(connection, {"n": number}, key=key, type="shop.said.v1")

    async def left(self) -> tuple[int, int]:
        async with self.engine.connect() as connection:
            counts = [
                (await connection.execute(select(func.count()).select_from(table))).scalar_one()
                for table in (self.tables.outbox, self.tables.dead)
            ]
        return counts[0], counts[1]


@pytest.fixture(params=["sqlite", "postgresql"])
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Shop, None]:
    """The same on both databases."""
    url = (
        f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgresql_url")
    )
    engine = create_async_engine(url)
    made = Shop(engine, url)
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, made.tables.versions, [made.tables.part])
    yield made
    await engine.dispose()


@pytest.mark.parametrize("policy", ["block", "park"])
async def test_redrive_keeps_the_order_of_the_key(shop: Shop, policy: DeadLetterPolicy) -> None:
    """The dead event goes first, then what waited or was parked behind it, then what came later; once each."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    rejecting = {True}
    broker.refuse(lambda event: event.data.decode() == '{"n":2}' and bool(rejecting))
    async with running(shop.relay(broker, watch, policy)):
        await shop.say(1, 2, 3)
        await watch.until(lambda: watch.count(obs.Buried) == 1)
        rejecting.clear()
        async with shop.engine.begin() as connection:
            (first, *_) = await shop.dead.list(connection, EVERY)
            assert (first.key, first.attempts, first.blocks_key) == ("k", 2, True)
            would = await shop.dead.redrive(
                connection, DEAD_LETTERS.select(numbers=[first.position]), WHY, dry_run=True
            )
            assert len(would) == (1 if policy == "block" else 2)
        assert (await shop.left())[1] == len(would)
        async with shop.engine.begin() as connection:
            assert await shop.dead.redrive(connection, DEAD_LETTERS.select(numbers=[first.position]), WHY) == would
        await shop.say(4)
        await watch.until(lambda: watch.settled == 4)
    assert numbers(await received(broker, 4)) == [1, 2, 3, 4]
    assert await shop.left() == (0, 0)


async def test_discard_lets_the_followers_go_on(shop: Shop) -> None:
    """What is discarded is gone for good, and only that."""
    broker, watch = MemoryBroker(), Watch()
    await broker.declare(EVERYTHING)
    broker.refuse(lambda event: event.data.decode() == '{"n":1}')
    async with running(shop.relay(broker, watch, "block")):
        await shop.say(1, 2)
        await watch.until(lambda: watch.count(obs.Buried) == 1)
        async with shop.engine.begin() as connection:
            assert [
                letter.type for letter in await shop.dead.discard(connection, DEAD_LETTERS.equal(key="k"), WHY)
            ] == ["shop.said.v1"]
        await watch.until(lambda: watch.settled == 1)
    assert numbers(await received(broker, 1)) == [2]
    assert await shop.left() == (0, 0)


async def test_a_position_that_is_no_dead_letter_is_not_found(shop: Shop) -> None:
    """What is named must be there; of everything there may be nothing."""
    async with shop.engine.begin() as connection:
        with pytest.raises(NotFoundError, match="no dead letter at position 7"):
            await shop.dead.redrive(connection, DEAD_LETTERS.select(numbers=[7]), WHY)
        assert await shop.dead.redrive(connection, EVERY, WHY) == []
