"""`Consumer`: runs an inbox against a broker and a database, until stopped."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from sagapost.core.broker import Broker
from sagapost.core.clock import Clock
from sagapost.core.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    TopologyConflictError,
)
from sagapost.core.life import Attempts, Runtime
from sagapost.core.observer import NullObserver, Observer
from sagapost.core.schema import check_schema
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.settings import ConsumerSettings
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.kept.database import Database
from sagapost.inbox.kept.registry import register_consumer
from sagapost.inbox.running.assembly import ConsumerParts, assemble
from sagapost.inbox.running.availability import Availability
from sagapost.inbox.running.counters import ConsumerStatistics, Counters
from sagapost.inbox.running.intake import Intake
from sagapost.inbox.running.shared import Shared

__all__ = ["Consumer"]

_LASTING = timedelta(minutes=1)
"""After so long the end of a subscription counts as a first failure, whether or not anything was received."""


class Consumer:
    """One consumer of an inbox. Run as many processes of it as you like; they share the queue.

    :param inbox: what is consumed, and the handlers.
    :param engine: the service's database, which holds the inbox tables, the outbox tables, and what handlers write.
    :param broker: where the events come from.
    :param sessions: your session factory, for its class and options; the inbox binds its sessions itself.
    :param observer: told about everything that happens (`sagapost.inbox.declared.observations`).
    :raises ConfigurationError: if the inbox has no handler, or the engine's pool is too small for the settings.

    One effect per event: the handlers' work, what they publish, and the dedup key are one transaction, and the
    message is acknowledged after its commit. Nothing is lost: what cannot be handled is parked with the reason.
    Memory: bounded by the prefetch and by `ConsumerSettings.max_bytes_in_hand`, whatever waits in the queue.
    """

    def __init__(
        self,
        inbox: Inbox,
        *,
        engine: AsyncEngine,
        broker: Broker,
        settings: ConsumerSettings | None = None,
        sessions: async_sessionmaker[Any] | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        if not inbox.handlers:
            raise ConfigurationError(
                f"Inbox {inbox.name!r} has no handlers. Declare one with @inbox.on(...), and import the module that "
                "does so before the consumer is made."
            )
        self._inbox = inbox
        self._broker = broker
        self._settings = settings if settings is not None else ConsumerSettings()
        self._observer = self._counters = Counters(observer if observer is not None else NullObserver())
        self._sessions = HandlerSessions(sessions, inbox.outbox)
        self._database = Database(
            engine, concurrency=self._settings.concurrency, timeout=self._settings.database_timeout
        )
        self._runtime = Runtime(
            f"inbox {inbox.name}", observer=self._observer, clock=clock, backoff=self._settings.reconnect
        )
        self._stop = self._runtime.stop
        self._availability = Availability(self._database, self._runtime)
        self._shared = Shared(inbox, self._settings, self._database, self._availability, self._observer, self._runtime)
        self._intake: Intake | None = None
        self._subscribed_once = False

    def stop(self) -> None:
        """Receive nothing new, finish what is running, acknowledge it, give the rest back, and let `run` return."""
        self._stop.set()

    @property
    def statistics(self) -> ConsumerStatistics:
        """Figures so far; a copy."""
        settlement = self._intake.settlement if self._intake is not None else None
        return replace(
            self._counters.totals,
            in_hand=settlement.in_hand if settlement is not None else 0,
            bytes_in_hand=settlement.bytes_in_hand if settlement is not None else 0,
        )

    async def run(self) -> None:
        """Consume until `stop` is called or the task is cancelled.

        :raises SchemaError: if the tables are missing or of another version.
        :raises BrokerRefusedError: if the broker refuses this consumer before it ever worked (credentials,
            permissions). Unreachable servers are waited for.
        :raises TopologyConflictError: if the queue exists with other arguments.
        """
        name = self._inbox.name
        self._observer.notify(obs.ConsumerStarted(name))
        unfinished = 0
        try:
            number = await self._availability.until_available(partial(self._database.run, self._register))
            if number is not None:
                unfinished = await self._run(number)
        finally:
            self._observer.notify(obs.ConsumerStopped(name, unfinished))

    def _register(self, connection: Connection) -> int:
        tables = self._inbox.tables
        check_schema(connection, tables.versions, tables.part, where=self._database.address)
        return register_consumer(connection, tables, self._inbox.name)

    async def _run(self, number: int) -> int:
        max_prefetch = self._broker.capabilities.max_prefetch
        read = partial(self._broker.read, foreign=self._inbox.foreign)
        parts = assemble(self._shared, self._sessions, number=number, max_prefetch=max_prefetch, read=read)
        # Ages are judged by the database's clock from the first message on.
        await self._availability.until_available(parts.pruner.read_clock)
        await self._availability.until_available(parts.dispatcher.announce)
        refusal: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                for service in (parts.workers.run, parts.retries.run, parts.pruner.run):
                    tasks.start_soon(service)
                # A refusal is reported as it is, and not as a group of one.
                try:
                    await self._runtime.keep(
                        partial(self._consume, parts), is_outage=self._is_outage, lasting=_LASTING
                    )
                except (BrokerError, TopologyConflictError) as error:
                    refusal = error
                self._stop.set()
                await parts.workers.drain(self._settings.drain_timeout)
                # The others see the stop by themselves, after the statement they are in.
                tasks.cancel_scope.deadline = anyio.current_time() + self._database.timeout
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await parts.retries.call_off(parts.workers.left())
        if refusal is not None:
            raise refusal
        return parts.workers.unfinished

    def _is_outage(self, error: BaseException) -> bool:
        # A refusal at the start is a mistake to report; later it may be a server on its way up or down.
        if isinstance(error, BrokerUnavailableError):
            return True
        return self._subscribed_once and isinstance(error, BrokerError)

    async def _consume(self, parts: ConsumerParts, attempts: Attempts) -> None:
        """Consume over one subscription, until stopped, the broker ends it, or the database was away for too long."""
        # After an outage that ended the last subscription there is nothing to receive for yet.
        await self._availability.until_available(self._database.ping)
        if self._stop.is_set():
            return
        acknowledged = self._counters.totals.acknowledged
        try:
            async with self._broker.subscribe(self._inbox.queue, prefetch=parts.prefetch) as subscription:
                self._subscribed_once = True
                attempts.connected()
                self._observer.notify(obs.ConsumerReady(self._inbox.name, self._broker.address, parts.prefetch))
                self._intake = Intake(subscription, self._shared, parts.dispatcher, parts.workers, parts.screening)
                await self._intake.run()
        finally:
            if self._counters.totals.acknowledged > acknowledged:
                attempts.worked()
