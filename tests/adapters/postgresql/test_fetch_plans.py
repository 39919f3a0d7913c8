"""The plans of the fetch: what each statement touches is bounded by what it returns.

Whatever the statistics say, however many dead rows an open transaction keeps from being cleaned away, and whether the
plan is made for its arguments or for any. Each bound is a few times what a good plan needs, and a hundredth of what a
bad one takes on these 200,000 rows.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import pytest

from sagapost.adapters.postgresql.fetch_statements import FetchStatements
from tests.adapters.postgresql.outbox import OutboxDatabase, installed
from tests.servers.databases import PostgreSQLServer

MANY = 200_000
NEW = 10
PAGE = 1_000
BYTES = 2**25
DELTA = frozenset({"outbox_xid_position"})
WALK = frozenset({"outbox_pkey"})

Snapshot: TypeAlias = tuple[int, int, tuple[int, ...]]
NOTHING: Snapshot = (1, 1, ())


@dataclass
class Scene:
    """An outbox in which a relay has seen everything but the last few rows."""

    database: OutboxDatabase
    sql: FetchStatements
    seen: Snapshot
    """What it has seen; a straggler was open then."""
    last: int
    """The last position it has seen."""

    async def now(self) -> Snapshot:
        """The snapshot of this moment."""
        snapshot: Any = await self.database.sql.fetchval("SELECT pg_current_snapshot()")
        return cast("Snapshot", snapshot)


def owned(*, all_: bool) -> tuple[object, ...]:
    """The arguments of the partition filter."""
    return () if all_ else (32, [1, 5, 7, 11])


@pytest.fixture(scope="module", params=["no-statistics", "analyzed", "dead-rows", "dead-rows-analyzed"])
async def scene(postgresql: PostgreSQLServer, request: pytest.FixtureRequest) -> AsyncGenerator[Scene, None]:
    """200,000 rows, alive or dead and kept by a writing transaction that is older than all, then ten new ones."""
    kind: str = request.param
    with postgresql.fresh_database() as name:
        async with installed(postgresql.url(name)) as database, database.open_transaction():
            await database.write(MANY, size=200)
            if kind != "no-statistics":
                await database.sql.execute("ANALYZE outbox")
            if kind.startswith("dead"):
                await database.sql.execute("DELETE FROM outbox")
            scene = Scene(database, FetchStatements(database.tables.outbox, database.tables.dead), NOTHING, 0)
            scene.seen = await scene.now()
            scene.last = await database.value("SELECT last_value FROM outbox_position_seq")
            await database.write(NEW, size=200)
            if kind == "dead-rows-analyzed":
                await database.sql.execute("ANALYZE outbox")
            yield scene


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
@pytest.mark.parametrize("all_", [True, False], ids=["all", "owned"])
async def test_the_delta_goes_along_its_index(scene: Scene, *, all_: bool, generic: bool) -> None:
    """The usual fetch: ten new rows and a straggler that is still open, by the index on (xid, position) alone."""
    _, xmax, xip = scene.seen
    sql = scene.sql.delta_all if all_ else scene.sql.delta_owned
    explained = await scene.database.explain(sql, xip, xmax, PAGE, BYTES, *owned(all_=all_), generic=generic)
    assert explained.indexes == DELTA
    assert explained.scanned == frozenset()
    assert explained.buffers < 40


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
@pytest.mark.parametrize("all_", [True, False], ids=["all", "owned"])
async def test_a_page_goes_along_the_primary_key(scene: Scene, *, all_: bool, generic: bool) -> None:
    """From the last position on; the dead rows before it are not visited."""
    sql = scene.sql.page_all if all_ else scene.sql.page_owned
    arguments: tuple[object, ...] = (scene.last, await scene.now(), scene.seen, PAGE, BYTES, [], [], 4 * PAGE)
    explained = await scene.database.explain(sql, *arguments, *owned(all_=all_), generic=generic)
    assert explained.indexes == WALK
    assert explained.scanned == frozenset()
    assert explained.buffers < 40


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_the_beginning_of_a_generation_is_found_by_its_index(scene: Scene, *, generic: bool) -> None:
    """Not by walking along the primary key up to it."""
    _, xmax, xip = scene.seen
    explained = await scene.database.explain(scene.sql.low, xip, xmax, generic=generic)
    assert explained.indexes == DELTA
    assert explained.buffers < 40


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_asking_for_rows_and_stamping_anew_touch_little(scene: Scene, *, generic: bool) -> None:
    """A retry that is due, and the look for restored rows at every start."""
    revisit = await scene.database.explain(scene.sql.revisit, [scene.last + 1, scene.last + 3], generic=generic)
    assert revisit.indexes == WALK
    assert revisit.buffers < 40
    restamp = await scene.database.explain(scene.sql.restamp, generic=generic)
    assert restamp.indexes == DELTA
    assert restamp.buffers < 40


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
@pytest.mark.parametrize("all_", [True, False], ids=["all", "owned"])
@pytest.mark.parametrize("scene", ["no-statistics", "analyzed"], indirect=True, scope="module")
async def test_a_page_of_the_backlog_costs_a_page(scene: Scene, *, all_: bool, generic: bool) -> None:
    """At the beginning of all rows, whether or not most of a stretch belongs to other relays."""
    sql = scene.sql.page_all if all_ else scene.sql.page_owned
    arguments: tuple[object, ...] = (0, await scene.now(), NOTHING, PAGE, BYTES, [], [], PAGE if all_ else 4 * PAGE)
    explained = await scene.database.explain(sql, *arguments, *owned(all_=all_), generic=generic)
    assert explained.indexes == WALK
    assert explained.scanned == frozenset()
    assert explained.buffers < 300
