"""The parts of a running consumer, put together once its number in the database is known."""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from sagapost.inbox.declared.settings import GROUPS
from sagapost.inbox.handling.dispatch import Dispatcher, ReadAgain
from sagapost.inbox.handling.group_commit import GroupCommit
from sagapost.inbox.handling.guarded import Guard
from sagapost.inbox.handling.pace import Pace
from sagapost.inbox.handling.savepoint_groups import SavepointGroups
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.handling.suspects import Suspects
from sagapost.inbox.handling.together import Batches, Together, WithSavepoints
from sagapost.inbox.handling.transaction import Toolbox
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.claims import Claims
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.parked_order import ParkedOrder
from sagapost.inbox.kept.parking import ParkingLot
from sagapost.inbox.kept.screening import Screening
from sagapost.inbox.kept.stranded import Stranded
from sagapost.inbox.kept.versions import Versions
from sagapost.inbox.running.retention import Pruner, Retention
from sagapost.inbox.running.retries import Retries
from sagapost.inbox.running.shared import Shared
from sagapost.inbox.running.workers import Workers

__all__ = ["ConsumerParts", "assemble"]


@dataclass(frozen=True, slots=True)
class ConsumerParts:
    """What a consumer runs."""

    dispatcher: Dispatcher
    workers: Workers
    retries: Retries
    pruner: Pruner
    screening: Screening
    prefetch: int


def assemble(
    shared: Shared, sessions: HandlerSessions, *, number: int, max_prefetch: int | None, read: ReadAgain
) -> ConsumerParts:
    """Build the parts; opens nothing.

    :param number: stands for the consumer's name in the tables.
    :param max_prefetch: what the broker allows; None: anything.
    :param read: how the broker reads again what could not be read.
    """
    inbox, settings, database, observer = shared.inbox, shared.settings, shared.database, shared.observer
    clock = shared.runtime.clock
    tables, moments = inbox.tables, database.kit.moments(clock)
    dedup = Dedup(tables, database.kit, consumer=number)
    attempts = BegunAttempts(tables, moments, consumer=number)
    order = ParkedOrder(tables, moments, consumer=number, on_dead=settings.on_dead)
    lot = ParkingLot(tables, dedup, moments, order, consumer=number, ordered=inbox.ordered)
    tools = Toolbox(
        inbox,
        database,
        Claims(dedup, lot, attempts),
        sessions,
        observer,
        clock,
        Guard(database, settings.handler_timeout.total_seconds(), setting="ConsumerSettings.handler_timeout"),
        threads=anyio.CapacityLimiter(database.concurrency),
        pace=Pace(),
    )
    screening = Screening(database, dedup, observer, consumer=inbox.name)
    suspects = Suspects(database, attempts, observer, consumer=inbox.name)
    versions = Versions(tables, moments, consumer=number, takes=inbox.takes)
    dispatcher = Dispatcher(tools, settings, lot, attempts, suspects, screening, versions, read)
    together: Together = (
        WithSavepoints(dispatcher, SavepointGroups(tools, tools.pace), tools.pace, database, dedup)
        if settings.batch == GROUPS
        else Batches(dispatcher, GroupCommit(tools), suspects, size=settings.batch)
    )
    workers = Workers(shared, dispatcher, together)
    # The limit of every transaction of ours, and as much again as a call may take.
    silent_for = settings.handler_timeout + settings.database_timeout
    stranded = Stranded(database, tables, observer, consumer=inbox.name, silent_for=silent_for)
    retention = Retention(tables, moments, consumer=number, window=settings.retention)
    return ConsumerParts(
        dispatcher,
        workers,
        Retries(shared, dispatcher, workers, stranded),
        Pruner(shared, retention, attempts, moments, dispatcher),
        screening,
        settings.effective_prefetch(database.concurrency, max_prefetch),
    )
