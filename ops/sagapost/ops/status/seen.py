"""What was seen of one service: its database, and the broker as it looks from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import anyio

from sagapost.core.errors import BrokerError, MissingExtraError, SchemaError
from sagapost.ops import database
from sagapost.ops.adapters import make_broker, make_store
from sagapost.ops.tables import tables_of
from sagapost.outbox.overview import OutboxOverview, outbox_overview

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from sagapost.core.broker import QueueDepth
    from sagapost.core.outbox_store import OutboxBacklog
    from sagapost.core.schema import SchemaPart
    from sagapost.inbox.operated.overview import InboxOverview
    from sagapost.ops.settings import LoadedSettings
    from sagapost.ops.tables import Tables
    from sagapost.sagas.counts import SagaCounts, TrackerCounts

__all__ = ["BrokerSeen", "Seen", "ask_broker", "installed", "look"]

_PATIENCE: Final = 4.0
"""Seconds for the broker's answers: whoever asks wants to know now, and no answer is one."""
_SILENT: Final = 4
"""A relay renews its lease three times before it ends. Where less than a fourth of it is left, that did not happen."""


@dataclass(frozen=True, slots=True)
class BrokerSeen:
    """The broker, asked from here."""

    address: str
    problem: str | None = None
    """Why it cannot be used; None: it answers."""
    queues: Sequence[QueueDepth] = ()
    """Those of the inboxes of this database."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen."""

    backlog: OutboxBacklog
    outbox: OutboxOverview
    lease: timedelta
    """How long relays keep a partition without a sign of life, by the settings."""
    broker: BrokerSeen | None = None
    """None: there is no broker that could be asked from here."""
    inboxes: Mapping[str, InboxOverview] = field(default_factory=dict[str, "InboxOverview"])
    sagas: Mapping[str, SagaCounts] = field(default_factory=dict[str, "SagaCounts"])
    tracker: TrackerCounts | None = None
    """None: this is no tracker's database."""

    @property
    def living(self) -> int:
        """How many relays renew their leases."""
        return sum(relay.expires_in > self.lease / _SILENT for relay in self.outbox.relays)

    def silent_for(self, expires_in: timedelta) -> timedelta | None:
        """Return since when a relay has given no sign of life; None: it is expected to do so again soon."""
        return None if expires_in > self.lease / _SILENT else self.lease - expires_in


async def look(loaded: LoadedSettings, *, examples: int) -> Seen:
    """Look at the database, then ask the broker for the queues of its inboxes. Changes nothing.

    :param examples: how many events, messages and sagas of each kind are named.
    :raises SchemaError: if the tables are not there or of another release.
    :raises StoreError: if the database cannot be reached, or refuses. An unreachable broker is something that is seen.
    """
    store = make_store(loaded)
    try:
        await store.check_schema()
        backlog = await store.backlog.measure()
    finally:
        await store.aclose()
    tables = tables_of(loaded.settings, with_tracker=True)
    async with database.connect(loaded) as connection:
        there = [
            part.name for part in tables.parts if await connection.run_sync(installed, loaded, tables.versions, part)
        ]
        seen = await connection.run_sync(_read, tables, there, examples, backlog, loaded.settings.relay.lease_ttl)
    broker = await ask_broker(loaded, sorted(seen.inboxes))
    return Seen(seen.backlog, seen.outbox, seen.lease, broker, seen.inboxes, seen.sagas, seen.tracker)


def installed(connection: Connection, loaded: LoadedSettings, versions: Table, part: SchemaPart) -> bool:
    """Return whether the tables are there: a service that only publishes has no inbox and no sagas."""
    from sagapost.core.schema import check_schema

    try:
        check_schema(
            connection,
            versions,
            part,
            where=f"The database at {database.address_of(database.engine_url(loaded.database_url))}",
        )
    except SchemaError as error:
        if error.found is not None:
            raise
        return False
    return True


def _read(
    connection: Connection,
    tables: Tables,
    there: Sequence[str],
    examples: int,
    backlog: OutboxBacklog,
    lease: timedelta,
) -> Seen:
    from sagapost.inbox.operated.overview import inbox_overview
    from sagapost.sagas.counts import saga_counts, tracker_counts

    return Seen(
        backlog,
        outbox_overview(connection, tables.outbox, examples=examples),
        lease,
        inboxes=inbox_overview(connection, tables.inbox, examples=examples) if "inbox" in there else {},
        sagas=saga_counts(connection, tables.sagas, examples=examples) if "sagas" in there else {},
        tracker=tracker_counts(connection, tables.tracker, examples=examples) if "tracker" in there else None,
    )


async def ask_broker(loaded: LoadedSettings, queues: Sequence[str]) -> BrokerSeen | None:
    """Ask the broker for these queues; None: there is no broker that could be asked from here."""
    if loaded.settings.connections.broker_url is None:
        return None
    try:
        broker = make_broker(loaded)
    except MissingExtraError as error:
        return BrokerSeen(loaded.broker_url.scheme, str(error))
    if not broker.capabilities.crosses_processes:
        # It lives in the process that runs the relay and the consumers.
        return None
    try:
        with anyio.fail_after(_PATIENCE):
            return BrokerSeen(broker.address, queues=await broker.depths(*queues))
    except (BrokerError, MissingExtraError) as error:
        return BrokerSeen(broker.address, str(error))
    except TimeoutError:
        return BrokerSeen(broker.address, f"The broker at {broker.address} did not answer within {_PATIENCE:g} s.")
