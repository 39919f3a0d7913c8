"""The relay: publishes committed outbox rows to the broker, in order, each until it is confirmed and routed.

    wake -> fetch -> send with a confirm window -> confirmed: delete | returned, rejected: hold, retry, bury | unknown:
    again, under the same id

`Relay.run` keeps four loops going: ownership (leases), settlement (deletes), the schedule (moves due events), and one
cycle of fetch, send and confirm per broker connection. A cycle that fails, because the broker or the database went
away, is a property of the cycle and not of any message: it burns no attempts, and the next cycle starts from the
oldest row that is not settled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import anyio

from sagapost.core.broker import Broker
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.errors import (
    BrokerError,
    BrokerUnavailableError,
    LeaseLostError,
    StoreError,
    StoreUnavailableError,
)
from sagapost.core.ids import new_uuid
from sagapost.core.life import Attempts, Runtime, ServerLost, part_of
from sagapost.core.observer import Observer, Observers
from sagapost.core.outbox_store import OutboxStore, Partition, RelayId
from sagapost.outbox.relay import observations as obs
from sagapost.outbox.relay.fetching import FetchStage
from sagapost.outbox.relay.gate import Gate
from sagapost.outbox.relay.ownership import Ownership
from sagapost.outbox.relay.parts import RelayParts
from sagapost.outbox.relay.policy import Refusals
from sagapost.outbox.relay.routes import Routes
from sagapost.outbox.relay.scheduling import run_schedule
from sagapost.outbox.relay.sending import SendStage
from sagapost.outbox.relay.settings import RelaySettings
from sagapost.outbox.relay.settlement import Settler
from sagapost.outbox.relay.sweeping import run_sweep

__all__ = ["Relay", "RelayStatistics"]

_NAME = "relay"
_LAST_ANSWERS = 5.0
"""Seconds to wait for the broker's answers when a cycle ends for another reason."""
_LASTING = timedelta(minutes=1)
"""After so long the end of a cycle counts as a first failure, whether or not there was anything to publish."""
_SCHEMA_LOOK = timedelta(minutes=1)
"""Time between two looks at the version of the tables, which others may upgrade under a relay of an older release."""
_LEASE_LOST = 0.2
"""Seconds to wait after a lease was lost, for a heartbeat to say what is left."""


@dataclass(frozen=True, slots=True)
class RelayStatistics:
    """Figures of one relay since it started."""

    published: int
    settled: int
    in_flight: int
    held_keys: int
    retries: int
    dead: int
    partitions: int


class Relay:
    """One relay. Run as many processes of it as you like against one outbox; they share the partitions.

    :param store: the outbox's database.
    :param broker: where events go.
    :param observer: told about everything that happens (`sagapost.outbox.relay.observations`).

    At-least-once: an event is published until the broker confirms and routes it, always under the same id. Order: per
    key, as committed. Memory: bounded by `RelaySettings.max_in_flight` and `max_in_flight_bytes`. No database
    transaction is open while the broker is spoken to.
    """

    def __init__(
        self,
        store: OutboxStore,
        broker: Broker,
        *,
        settings: RelaySettings | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        settings = settings if settings is not None else RelaySettings()
        # What an observer raises goes no further: a CancelledError would end the part that reports.
        observer = Observers(() if observer is None else (observer,))
        clock = clock if clock is not None else SystemClock()
        self.id = RelayId(new_uuid())
        self._store = store
        self._broker = broker
        routes = Routes(
            settings.routing,
            suspicion=settings.suspicion.total_seconds(),
            serial=settings.serial_keys,
            monotonic=clock.monotonic,
        )
        gate = Gate(routes)
        ownership = Ownership(
            store.leases,
            self.id,
            ttl=settings.lease_ttl,
            clock=clock,
            observer=observer,
            in_partition=gate.in_partition,
            forget=gate.forget_partitions,
            changed=self._nudge,
        )
        self._runtime = Runtime(_NAME, observer=observer, clock=clock, backoff=settings.reconnect)
        background = Runtime(_NAME, observer=observer, clock=clock, backoff=settings.reconnect)
        settler = Settler(store.settlement, gate, ownership, background)
        self._parts = RelayParts(
            settings, gate, routes, ownership, settler, clock, observer, background, self._runtime.stop
        )
        self._refusals = Refusals(self._parts, store.settlement)
        self._published = 0
        self._drain_until: float | None = None
        self._unanswered = 0
        self._sender: SendStage | None = None
        self._connected_once = False

    def stop(self) -> None:
        """Stop fetching, confirm and settle what was sent, hand the partitions over, and let `run` return."""
        self._runtime.stop.set()
        self._nudge()

    @property
    def statistics(self) -> RelayStatistics:
        """Figures so far."""
        parts = self._parts
        return RelayStatistics(
            published=self._published + (self._sender.published if self._sender is not None else 0),
            settled=parts.settler.total,
            in_flight=parts.gate.in_flight,
            held_keys=parts.gate.held,
            retries=self._refusals.retries,
            dead=self._refusals.dead,
            partitions=len(parts.ownership.claims),
        )

    async def run(self) -> None:
        """Relay until `stop` is called or the task is cancelled.

        :raises SchemaError: if the tables are missing or of another version, also if they come to be so: relays of two
            versions must not work side by side.
        :raises BrokerRefusedError, StoreRefusedError: if a server refuses this relay before it ever worked
            (credentials, permissions). Unreachable servers are waited for.
        :raises TopologyConflictError: if the exchange exists with other arguments.
        """
        parts = self._parts
        parts.observer.notify(obs.RelayStarted(relay=str(self.id)))
        await self._runtime.until_available(self._store.check_schema)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(part_of, "relay's ownership", parts.ownership.run)
                tasks.start_soon(part_of, "relay's settlement", parts.settler.run)
                tasks.start_soon(part_of, "relay's schedule", partial(run_schedule, parts, self._store.schedule))
                tasks.start_soon(part_of, "relay's look at the tables", self._watch_schema)
                cycles = partial(self._runtime.keep, self._hold_leases, is_outage=self._is_outage, lasting=_LASTING)
                await part_of("relay", cycles, may_return=True)
                # The last cycle may have ended with the broker away; what it had confirmed is still to be deleted.
                await self._drain()
                tasks.cancel_scope.cancel()
        finally:
            await self._leave()

    def _is_outage(self, error: BaseException) -> bool:
        # A refusal at the start is a mistake to report; later (a restarting server that still refuses, a rotated
        # password) the relay holds on, since its work cannot be done by giving up.
        if self._connected_once:
            return isinstance(error, BrokerError | StoreError)
        return isinstance(error, BrokerUnavailableError | StoreUnavailableError)

    async def _watch_schema(self) -> None:
        """Look at the version of the tables until cancelled."""

        async def look() -> None:
            # The other stages notice an outage by themselves.
            with suppress(StoreError):
                await self._store.check_schema()

        background = self._parts.background
        await background.stop.wait(_SCHEMA_LOOK.total_seconds())
        await background.every(_SCHEMA_LOOK, look)

    async def _hold_leases(self, attempts: Attempts) -> None:
        """Run one cycle; a lease that another relay took ends it, and is no outage."""
        ownership = self._parts.ownership
        try:
            await self._cycle(attempts)
        except LeaseLostError as error:
            ownership.lose(frozenset(Partition(p) for p in error.partitions), "the token was refused")
            ownership.nudge()
            await self._runtime.stop.wait(_LEASE_LOST)

    async def _cycle(self, attempts: Attempts) -> None:
        """Fetch, send and confirm over one connection, until stopped or something fails."""
        parts = self._parts
        if self._connected_once:
            # What ended the former cycle may be that the tables are others now.
            await self._store.check_schema()
        failure: list[Exception] = []
        async with AsyncExitStack() as stack:
            reader = await stack.enter_async_context(self._store.reader())
            doorbell = await stack.enter_async_context(self._store.doorbell())
            sweeper = await stack.enter_async_context(self._store.sweeper())
            sender: SendStage | None = None
            try:
                async with self._broker.publisher() as publisher:
                    parts.observer.notify(obs.BrokerReady(address=self._broker.address))
                    parts.routes.reset()
                    parts.gate.max_message_bytes = publisher.max_message_bytes
                    sender = self._sender = SendStage(parts, publisher, self._refusals)
                    fetcher = FetchStage(parts, reader, doorbell, self._refusals)
                    await self._refusals.load_blocked()
                    self._connected_once = True
                    attempts.connected()
                    async with anyio.create_task_group() as tasks:

                        async def guard(name: str, stage: Callable[[], Awaitable[None]]) -> None:
                            # The first failure ends the cycle; it is reported once, and not as a group.
                            try:
                                await part_of(f"relay's {name}", stage, may_return=stage == fetcher.run)
                            except (BrokerError, StoreError) as error:
                                failure.append(error)
                            if failure and stage == fetcher.run:
                                # The broker is still there: take in its answers, or an outage of the database alone
                                # would cost duplicates.
                                with anyio.move_on_after(_LAST_ANSWERS):
                                    await sender.finish()
                            if failure:
                                tasks.cancel_scope.cancel()

                        tasks.start_soon(guard, "send stage", sender.send)
                        tasks.start_soon(guard, "confirm stage", sender.confirm)
                        tasks.start_soon(guard, "watch over the broker", sender.watch)
                        tasks.start_soon(guard, "sweep", partial(run_sweep, parts, sweeper, fetcher))
                        await guard("fetch stage", fetcher.run)
                        if not failure:
                            await self._drain()
                        tasks.cancel_scope.cancel()
            finally:
                if sender is not None:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                        await self._absorb(sender, attempts)
                held = parts.gate.in_flight
                parts.gate.forget_unconfirmed()
                self._unanswered = held - parts.gate.in_flight if parts.stop.is_set() else 0
                parts.gate.restarted()
        if failure:
            raise failure[0]

    async def _absorb(self, sender: SendStage, attempts: Attempts) -> None:
        """Take in what was answered before the connection ended."""
        try:
            await sender.drain()
        except StoreError as error:
            # Only the bookkeeping of refused rows writes here; they are refused and counted again.
            self._parts.observer.notify(ServerLost(_NAME, "database", str(error), 0, 0.0))
        if sender.published:
            attempts.worked()
        self._published += sender.published
        self._sender = None

    async def _drain(self) -> None:
        """On stop: wait until everything sent is confirmed and settled, within the budget."""
        parts = self._parts
        if self._drain_until is None:
            self._drain_until = anyio.current_time() + parts.settings.drain_timeout.total_seconds()
        with anyio.move_on_after(self._drain_until - anyio.current_time()):
            while parts.gate.in_flight:
                await parts.settler.capacity.wait(0.05)

    async def _leave(self) -> None:
        """Hand the partitions over at once, so that others need not wait for the leases to run out."""
        parts = self._parts
        left = self._unanswered + parts.gate.in_flight
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            try:
                await parts.ownership.retire()
            except StoreError as error:
                parts.observer.notify(ServerLost(_NAME, "database", str(error), 0, 0.0))
            await self._store.aclose()
        parts.observer.notify(obs.RelayStopped(relay=str(self.id), left_in_flight=left))

    def _nudge(self) -> None:
        self._parts.nudge.set()
        self._parts.ready.set()
