"""`sagapost status`: how far behind the outbox is, what the inboxes have parked, and which sagas need somebody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import anyio
from sqlalchemy import select

from sagapost.core.errors import SchemaError
from sagapost.core.outbox_store import OutboxBacklog
from sagapost.ops import database
from sagapost.ops.adapters import make_store
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_table
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.settings.units import format_duration
from sagapost.ops.tables import tables_of
from sagapost.sagas.counts import SagaCounts, saga_counts

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

    from sagapost.core.schema import SchemaPart
    from sagapost.inbox.kept.parking import State
    from sagapost.inbox.operated.inspection import ParkedCounts

__all__ = ["status"]

_STATES: Mapping[State, str] = {
    "waiting": "failed; tried again when due",
    "behind": "wait for an earlier message of their key",
    "dead": "an operator decides; see `sagapost parked list`",
}


@dataclass(frozen=True, slots=True)
class _Status:
    outbox: OutboxBacklog
    inboxes: Mapping[str, ParkedCounts]
    sagas: Mapping[str, SagaCounts]


def status(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show how many events wait in the outbox, how many messages each inbox has parked, and which sagas are stuck."""
    loaded = load(required=("database_url",), env_file=env_file)
    found = anyio.run(_look, loaded)
    if as_json:
        write_json(_as_json(found))
        return
    backlog = found.outbox
    age = "-" if backlog.oldest_age is None else format_duration(backlog.oldest_age)
    rows = [
        ("outbox", "pending", str(backlog.pending), "committed and not yet published"),
        ("outbox", "oldest", age, "age of the first of them"),
        ("outbox", "held", str(backlog.held), "refused by the broker; tried again"),
        ("outbox", "dead", str(backlog.dead), "given up; an operator decides"),
        ("outbox", "scheduled", str(backlog.scheduled), "not due yet"),
    ]
    for name, counts in found.inboxes.items():
        parked = counts.by_state
        rows += [(f"inbox {name}", state, str(parked.get(state, 0)), text) for state, text in _STATES.items()]
    for name, here in found.sagas.items():
        rows += [
            (
                f"sagas of {name}",
                "rolling back",
                str(here.rolling_back),
                "compensations run, or are tried again",
            ),
            (f"sagas of {name}", "stuck", str(here.stuck), "a compensation failed for good; an operator decides"),
            (f"sagas of {name}", "tasks", str(here.tasks), "an operator decides; see `sagapost tasks list`"),
        ]
    write_table(
        ("where", "what", "count", "meaning"), rows, prose={"meaning"}, styles={"where": "cyan", "meaning": "dim"}
    )


async def _look(loaded: LoadedSettings) -> _Status:
    store = make_store(loaded)
    try:
        await store.check_schema()
        backlog = await store.backlog.measure()
    finally:
        await store.aclose()
    every = tables_of(loaded.settings)
    tables, names, sagas = every.inbox, list[str](), dict[str, SagaCounts]()
    async with database.connect(loaded) as connection:
        if await _installed(connection, tables.versions, tables.part):
            names = sorted((await connection.execute(select(tables.consumers.c.name))).scalars())
        if await _installed(connection, every.sagas.versions, every.sagas.part):
            sagas = await connection.run_sync(saga_counts, every.sagas)
    if not names:
        return _Status(backlog, {}, sagas)
    from sagapost.inbox.operated.inspection import Inspection

    async with database.opened_engine(loaded) as engine:
        parked = {name: await Inspection(engine, tables, name).counts() for name in names}
    return _Status(backlog, parked, sagas)


async def _installed(connection: AsyncConnection, versions: Table, part: SchemaPart) -> bool:
    """Return whether the tables are there: a service that only publishes has no inbox and no sagas."""
    try:
        await database.check(connection, versions, [part])
    except SchemaError as error:
        if error.found is not None:
            raise
        return False
    return True


def _as_json(found: _Status) -> dict[str, object]:
    backlog, age = found.outbox, found.outbox.oldest_age
    return {
        "outbox": {
            "pending": backlog.pending,
            "oldest_seconds": None if age is None else round(age.total_seconds(), 3),
            "held": backlog.held,
            "dead": backlog.dead,
            "scheduled": backlog.scheduled,
        },
        "inboxes": {
            name: {
                "parked": counts.by_state,
                "reasons": counts.by_reason,
                "oldest": None if counts.oldest is None else counts.oldest.isoformat(),
            }
            for name, counts in found.inboxes.items()
        },
        "sagas": {name: asdict(counts) for name, counts in found.sagas.items()},
    }
