"""One service on the stage: its database, and what the rehearsal reads and writes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, MetaData, Row, Select, Table, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from sagapost.core.backoff import Backoff
from sagapost.core.broker import Broker
from sagapost.core.envelope import ATTRIBUTES, Event
from sagapost.core.life import Signal
from sagapost.core.observer import Observation
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, ConsumerSettings, Inbox, RetryPolicy
from sagapost.inbox.declared.handlers import topic_regex
from sagapost.inbox.declared.observations import HandlerFailed
from sagapost.sagas.choreography.manifest import Manifest
from sagapost.sagas.compensator import Compensator, CompensatorSettings
from sagapost.sagas.manifests import manifest_of
from sagapost.sagas.operator import history
from sagapost.sagas.sagas import Sagas
from sagapost.sagas.testing.clock import VirtualClock

__all__ = ["UnhandledMessage", "RehearsedService"]

_ATTRIBUTES = [each.name for each in ATTRIBUTES if each.name not in {"id", "extensions"}]


@dataclass(frozen=True, slots=True)
class UnhandledMessage:
    """A message that could not be handled, as its row in the service's database says."""

    type: str
    state: str
    """`waiting` for its next attempt, `behind` an earlier one of its key, or `dead` until a person decides."""
    reason: str
    error: str
    attempts: int
    due: datetime | None


class RehearsedService:
    """A service taking part. Made by `Rehearsal.add`."""

    def __init__(self, inbox: Inbox, sagas: Sagas | None, engine: AsyncEngine, clock: VirtualClock) -> None:
        self.inbox = inbox
        self.name = inbox.name
        self.engine = engine
        """The service's own SQLite database."""
        self.sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(engine, expire_on_commit=False)
        """Sessions on it, for what the test does from outside and for looking at what the handlers wrote."""
        self.manifest: Manifest = manifest_of(inbox, sagas)
        self.failures: list[str] = []
        """Handlers that raised something else than a business failure or a request for a retry."""
        self._sagas = sagas
        self._clock = clock
        self._compensator = (
            Compensator(
                sagas,
                engine,
                settings=CompensatorSettings(retry=Backoff(base=timedelta(seconds=1), cap=timedelta(minutes=15))),
            )
            if sagas is not None
            else None
        )
        self._consumer: Consumer | None = None
        self._moved = Signal()

    async def install(self, metadata: MetaData | None) -> None:
        """Create all tables."""
        inbox, outbox, sagas = self.inbox, self.inbox.outbox, self._sagas
        parts = [inbox.tables.part]
        parts += [outbox.tables.part] if outbox is not None else []
        parts += [sagas.tables.part] if sagas is not None else []
        async with self.engine.begin() as connection:
            await connection.run_sync(lambda sync: install_schema(sync, inbox.tables.versions, parts))
            if metadata is not None:
                await connection.run_sync(metadata.create_all)

    def consumer(self, broker: Broker) -> Consumer:
        """Return the consumer that runs the inbox."""
        self._consumer = Consumer(
            self.inbox,
            engine=self.engine,
            broker=broker,
            # A failed message is parked at once: how long it waits is then a matter of virtual time. One message to a
            # transaction: which share one would depend on how quick handlers are.
            settings=ConsumerSettings(
                concurrency=1, batch=1, retry=RetryPolicy(quick=0), poll_interval=timedelta(milliseconds=50)
            ),
            observer=self,
            clock=self._clock,
        )
        return self._consumer

    def stop(self) -> None:
        """End the consumer."""
        if self._consumer is not None:
            self._consumer.stop()

    def notify(self, event: Observation, /) -> None:
        """Take what the consumer reports."""
        if isinstance(event, HandlerFailed):
            self.failures.append(f"{event.consumer}: the handler of {event.event_type} raised {event.error}")
        self._moved.set()

    # --- what the test asks ---

    async def parked(self) -> list[UnhandledMessage]:
        """Return the messages that could not be handled, oldest first."""
        table = self.inbox.tables.parked
        return [
            UnhandledMessage(row.type or "", row.state, row.reason, row.error, row.attempts, _utc(row.next_attempt_at))
            for row in await self._rows(select(table).order_by(table.c.id))
        ]

    async def compensations(self, saga: str) -> list[tuple[str, str]]:
        """Return name and state of each undo intent of a saga in this service, in the order of the steps."""
        if self._sagas is None:
            return []
        async with self.sessions() as session:
            return [(row["name"], row["state"]) for row in await history(self._sagas, session, saga)]

    # --- what the rehearsal does ---

    def is_bound_to(self, topic: str) -> bool:
        """Return whether the service's queue is bound to a topic."""
        return any(topic_regex(bound).fullmatch(topic) for bound in self.inbox.queue.topics)

    async def take_published(self) -> list[tuple[Event, str]]:
        """Take what is committed in the outbox, in its order, with the topics."""
        if self.inbox.outbox is None:
            return []
        table = self.inbox.outbox.tables.outbox
        return await self._take(table, table.c.position, [table.c.position])

    async def take_due(self) -> list[tuple[Event, str]]:
        """Take scheduled events whose time has come."""
        if self.inbox.outbox is None:
            return []
        table = self.inbox.outbox.tables.scheduled
        return await self._take(table, table.c.id, [table.c.deliver_at, table.c.id], table.c.deliver_at)

    async def compensate(self) -> bool:
        """Carry out one compensation that is due; False if none is."""
        return self._compensator is not None and await self._compensator.step()

    async def settle_parked(self) -> bool:
        """Wait until the consumer has tried what is due again; False if nothing was."""
        table = self.inbox.tables.parked
        due = (
            select(func.count())
            .select_from(table)
            .where(table.c.state == "waiting", or_(table.c.next_attempt_at <= self._clock.now(), table.c.claimed == 1))
        )
        worked = False
        while (await self._rows(due))[0][0]:
            worked = True
            await self._moved.wait(0.05)
        return worked

    async def next_due(self) -> datetime | None:
        """Return when something happens by itself: a deadline, a retry, a compensation; None: nothing will."""
        parked = self.inbox.tables.parked
        times: list[ColumnElement[datetime]] = [parked.c.next_attempt_at]
        if self.inbox.outbox is not None:
            times.append(self.inbox.outbox.tables.scheduled.c.deliver_at)
        if self._sagas is not None:
            times.append(self._sagas.tables.states.c.due_at)
        found = [_utc((await self._rows(select(func.min(column))))[0][0]) for column in times]
        return min((time for time in found if time is not None), default=None)

    async def _take(
        self,
        table: Table,
        identity: ColumnElement[int],
        order: Sequence[ColumnElement[object]],
        due: ColumnElement[datetime] | None = None,
    ) -> list[tuple[Event, str]]:
        query = select(table).order_by(*order)
        if due is not None:
            query = query.where(due <= self._clock.now())
        async with self.engine.begin() as connection:
            rows = (await connection.execute(query)).all()
            if rows:
                taken = [getattr(row, identity.key or "") for row in rows]
                await connection.execute(delete(table).where(identity.in_(taken)))
        return [(_event_of(row), row.topic) for row in rows]

    async def _rows(self, query: Select[Any]) -> Sequence[Row[Any]]:
        async with self.engine.connect() as connection:
            rows: Sequence[Row[Any]] = (await connection.execute(query)).all()
            return rows


def _event_of(row: Row[Any]) -> Event:
    values: dict[str, Any] = {name: getattr(row, name) for name in _ATTRIBUTES}
    values["time"] = _utc(row.time)
    return Event(id=str(row.event_id), extensions=row.extensions or {}, **values)


def _utc(moment: datetime | None) -> datetime | None:
    """SQLite keeps no timezone; ours are in UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
