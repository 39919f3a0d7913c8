"""The plans of the settle statements: what each touches is bounded by the rows it is given.

Under the same circumstances as those of the fetch: statistics that are wrong, dead rows that an older transaction
keeps from being cleaned away, a backlog that nobody has read yet.
"""

# pyright: reportPrivateUsage=false
# The statements themselves are what is tested.

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta

import pytest

from sagapost.adapters.postgresql.connection import PostgreSQLLink
from sagapost.adapters.postgresql.leases import PostgreSQLLeases
from sagapost.adapters.postgresql.schedule import PostgreSQLSchedule
from sagapost.adapters.postgresql.settle import PostgreSQLSettlement
from tests.adapters.postgresql.outbox import PARTITIONS, Explained, OutboxDatabase, installed
from tests.servers.databases import PostgreSQLServer

MANY = 60_000
GIVEN = 100
ALL = [*range(PARTITIONS)], [1] * PARTITIONS
WALK = "outbox_pkey"
FEW = 12 * GIVEN
"""Pages: a few for each of the rows that are given, in their table and its indexes; the table has some 2,500."""


class Scene:
    """An outbox with a lease on every partition, and rows to settle at its end."""

    def __init__(self, database: OutboxDatabase, first: int) -> None:
        self.database = database
        self.given = list(range(first, first + GIVEN))
        unused = PostgreSQLLink.__new__(PostgreSQLLink)
        self.settle = PostgreSQLSettlement(unused, database.tables, PostgreSQLLeases(unused, database.tables))
        self.schedule = PostgreSQLSchedule(unused, database.tables)

    async def explain(self, sql: str, *arguments: object, generic: bool) -> Explained:
        """Run the statement, tell how, and undo it."""
        transaction = self.database.sql.transaction()
        await transaction.start()
        try:
            return await self.database.explain(sql, *arguments, generic=generic)
        finally:
            await transaction.rollback()


@pytest.fixture(scope="module", params=["backlog", "analyzed-backlog", "dead-rows", "dead-rows-analyzed-before"])
async def scene(postgresql: PostgreSQLServer, request: pytest.FixtureRequest) -> AsyncGenerator[Scene, None]:
    """Rows alive or dead, kept by a transaction that is older than all, before those that are to be settled."""
    kind: str = request.param
    with postgresql.fresh_database() as name:
        async with installed(postgresql.url(name)) as database, database.open_transaction():
            await database.sql.execute("UPDATE outbox_leases SET token = 1")
            await database.write(MANY, size=200)
            if "analyzed" in kind:
                await database.sql.execute("ANALYZE outbox")
            if kind.startswith("dead"):
                await database.sql.execute("DELETE FROM outbox")
            last = await database.value("SELECT last_value FROM outbox_position_seq")
            await database.write(GIVEN, size=200)
            yield Scene(database, last + 1)


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_deleting_goes_along_the_primary_key(scene: Scene, *, generic: bool) -> None:
    """What the broker confirmed: a probe for each row, and no look at the others."""
    event_ids = [
        str(record[0])
        for record in await scene.database.sql.fetch(
            "SELECT event_id FROM outbox WHERE position = ANY($1::bigint[]) ORDER BY position", scene.given
        )
    ]
    positions, ids = (f"{{{','.join(map(str, each))}}}" for each in (scene.given, event_ids))
    explained = await scene.explain(scene.settle._delete, positions, *ALL, PARTITIONS, ids, generic=generic)
    assert WALK in explained.indexes
    assert "outbox" not in explained.scanned
    assert explained.buffers < FEW


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_recording_refusals_goes_along_the_primary_key(scene: Scene, *, generic: bool) -> None:
    """Refused rows get their reason and their time."""
    reasons, later, counts = ["full"] * GIVEN, [timedelta(seconds=1)] * GIVEN, [True] * GIVEN
    explained = await scene.explain(
        scene.settle._record, scene.given, *ALL, PARTITIONS, reasons, later, counts, generic=generic
    )
    assert WALK in explained.indexes
    assert "outbox" not in explained.scanned
    assert explained.buffers < 2 * FEW


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_burying_goes_along_the_primary_key(scene: Scene, *, generic: bool) -> None:
    """Rows that are given up move to the dead letters."""
    explained = await scene.explain(
        scene.settle._bury, scene.given, *ALL, PARTITIONS, ["full"] * GIVEN, True, generic=generic
    )
    assert WALK in explained.indexes
    assert "outbox" not in explained.scanned
    assert explained.buffers < 2 * FEW


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_looking_for_blocked_keys_does_not_look_at_the_outbox(scene: Scene, *, generic: bool) -> None:
    """Asked once a second while a key is blocked: the partial index of the dead letters, or their few pages.

    Among them those that the test of burying wrote and rolled back.
    """
    explained = await scene.explain(scene.settle._blocked, PARTITIONS, ALL[0], generic=generic)
    assert not {name for name in explained.indexes if not name.startswith("outbox_dead")}
    assert "outbox" not in explained.scanned
    assert explained.buffers < 3 * GIVEN


@pytest.mark.parametrize("generic", [False, True], ids=["custom", "generic"])
async def test_the_next_due_event_is_found_by_its_index(scene: Scene, *, generic: bool) -> None:
    """Looked at once a second by every relay."""
    explained = await scene.explain(scene.schedule._next, generic=generic)
    assert explained.buffers < 40
