"""`Rehearsal`: the services of a choreography on one stage, driven by the test until nothing moves any more."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Protocol, Self, TypeVar

import anyio
from sqlalchemy import MetaData
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.codec import decode_data, encode_data
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError, MissingExtraError, SagapostError
from sagapost.core.ids import new_id
from sagapost.core.naming import event_type_of
from sagapost.inbox import Inbox
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.choreography.manifest import Choreography
from sagapost.sagas.manifests import sagas_of
from sagapost.sagas.sagas import Sagas
from sagapost.sagas.testing.clock import VirtualClock
from sagapost.sagas.testing.observed import Observed
from sagapost.sagas.testing.post import Post
from sagapost.sagas.testing.service import RehearsedService

__all__ = ["Rehearsal", "RehearsalError"]

E = TypeVar("E")

_PATIENCE = 90.0
"""Seconds of real time that one delivery may take: more than a handler's own limit, which parks the message."""


class RehearsalError(SagapostError):
    """The choreography did something that a test should not pass over: a handler raised, or it never comes to rest."""


class Rehearsable(Protocol):
    """What is used of `sagapost.Service`, which stands above this part."""

    @property
    def inbox(self) -> Inbox:
        """What it consumes."""
        ...

    @property
    def metadata(self) -> MetaData:
        """Its tables, sagapost's among them."""
        ...

    def check(self) -> None:
        """Refuse what its declarations get wrong only together."""
        ...


@dataclass(frozen=True, slots=True)
class _Letter:
    """A message on its way to one service."""

    to: RehearsedService
    event: Event
    topic: str
    again: bool
    """It is to be delivered a second time."""


class Rehearsal:
    """Runs services against each other in one process: the inbox, the ledger and the tables are the real ones, each
    service on an SQLite database of its own; the broker and the passing of time are the rehearsal's.

    ::

        async with Rehearsal() as stage:
            shop = await stage.add(orders)
            await stage.add(payment)
            async with shop.sessions.begin() as session:
                await place_order(session, "blue-train")
            await stage.run()
            assert stage.said(OrderCompleted)

    One message is handled at a time, so a run can be repeated. By default in the order of publication; with a seed in
    a random order that keeps what the broker keeps, the order within one key of one queue.

    :param start: the virtual time at which it begins; default: now.
    :param seed: shuffle what may arrive in any order, and when each service undoes its steps, reproducibly.
    :param duplicates: deliver every message twice, the second time after everything that was on its way.
    :param strict: a handler that raises something unexpected fails `run`. False: it is parked and tried again in
        virtual time, as in production.
    :param limit: deliveries in one `run` after which it is taken for endless.
    """

    def __init__(
        self,
        *,
        start: datetime | None = None,
        seed: int | None = None,
        duplicates: bool = False,
        strict: bool = True,
        limit: int = 10_000,
    ) -> None:
        self.clock = VirtualClock(start)
        self._random = random.Random(seed) if seed is not None else None  # noqa: S311 not for secrets
        # Apart, so that what is undone when changes no order of messages.
        self._undoing = random.Random(f"undoing {seed}") if seed is not None else None  # noqa: S311 not for secrets
        self._duplicates = duplicates
        self._strict = strict
        self._limit = limit
        self._post = Post()
        self._services: list[RehearsedService] = []
        self._letters: list[_Letter] = []
        self._observed = Observed()
        self._stack = AsyncExitStack()
        self._folder = Path()

    async def __aenter__(self) -> Self:
        """Set the stage."""
        await self._stack.__aenter__()
        self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="rehearsal-")))
        # Entered before the task group, so that it is left after the consumers have ended.
        self._left = await self._stack.enter_async_context(AsyncExitStack())
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(self._stop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the consumers and remove the databases."""
        if error is not None:
            self._tasks.cancel_scope.cancel()
        await self._stack.__aexit__(kind, error, traceback)

    def _stop(self) -> None:
        for service in self._services:
            service.stop()

    async def add(
        self, service: Rehearsable | Inbox, *, metadata: MetaData | None = None, sagas: Sagas | None = None
    ) -> RehearsedService:
        """Bring a service on the stage: make its database, and let its inbox consume.

        :param service: a `sagapost.Service`, or the inbox of one that is made of parts.
        :param metadata: the service's own tables, created beside sagapost's; default: those of the `Service`.
        :param sagas: default: the one that the inbox's context class belongs to.
        :raises MissingExtraError: if the SQLite driver is not installed.
        :raises ConfigurationError: if a service of that name is on the stage, or its declarations do not fit together.
        """
        if isinstance(service, Inbox):
            inbox = service
        else:
            service.check()
            inbox, metadata = service.inbox, metadata if metadata is not None else service.metadata
        if any(each.name == inbox.name for each in self._services):
            raise ConfigurationError(f"A service named {inbox.name!r} is on the stage already.")
        if find_spec("aiosqlite") is None:
            raise MissingExtraError(module="aiosqlite", extra="sqlite", purpose="A rehearsal")
        engine = create_async_engine(f"sqlite+aiosqlite:///{self._folder / f'{len(self._services)}.db'}")
        # Nobody reads these files after a crash: waiting for the disk would only make the test slow.
        sqlalchemy_event.listen(engine.sync_engine, "connect", _do_not_wait_for_the_disk)
        self._left.push_async_callback(engine.dispose)
        found = sagas if sagas is not None else sagas_of(inbox)
        self._set_clocks(inbox.outbox, found)
        rehearsed = RehearsedService(inbox, found, engine, self.clock)
        await rehearsed.install(metadata)
        self._services.append(rehearsed)
        if inbox.handlers:
            self._tasks.start_soon(rehearsed.consumer(self._post).run)
        return rehearsed

    def _set_clocks(self, outbox: Outbox | None, sagas: Sagas | None) -> None:
        for item in (outbox, sagas):
            if item is not None:
                self._left.callback(setattr, item, "clock", item.clock)
                item.clock = self.clock

    # --- given ---

    async def say(self, payload: object, *, saga: str | None = None, key: str | None = None) -> Event:
        """Publish an event as if a service that is not on the stage had; it is delivered by the next `run`.

        :param saga: its correlation id; default: a new one.
        """
        type_ = event_type_of(type(payload))
        data, content = encode_data(payload, event_type=type_)
        event = Event(
            id=new_id(),
            source="rehearsal",
            type=type_,
            time=self.clock.now(),
            data=data,
            datacontenttype=content,
            correlationid=saga if saga is not None else new_id(),
            partitionkey=key,
        )
        self._observed.note(event, None)
        self._route(event, event.type)
        return event

    # --- when ---

    async def run(self) -> None:
        """Deliver, handle, compensate, until nothing is left that does not wait for a later time.

        :raises RehearsalError: if a handler raised something unexpected (unless `strict=False`), or the services
            never stop talking.
        """
        delivered: Counter[str] = Counter()
        while await self._collect() or self._letters or await self._settle():
            if self._undoing is not None and self._undoing.random() < 0.5 and await self._compensate():
                continue
            if self._letters:
                letter = self._letters.pop(self._choose())
                await self._deliver(letter)
                delivered[letter.event.type] += 1
                if delivered.total() >= self._limit:
                    busiest = ", ".join(f"{type_} ({count} times)" for type_, count in delivered.most_common(3))
                    raise RehearsalError(
                        f"After {self._limit:,} deliveries the services still talk; most about {busiest}. "
                        "`sagapost saga lint` finds cycles (SP006)."
                    )

    async def advance(self, by: timedelta) -> None:
        """Let virtual time pass, stopping wherever a deadline, a retry or a compensation is due; run at each."""
        target = self.clock.now() + by
        await self.run()
        while True:
            due = [time for service in self._services if (time := await service.next_due()) is not None]
            if not due or min(due) > target:
                break
            self.clock.advance(max(min(due) - self.clock.now(), timedelta(0)))
            await self.run()
        self.clock.advance(target - self.clock.now())
        await self.run()

    # --- then ---

    @property
    def services(self) -> dict[str, RehearsedService]:
        """The services on the stage, by name."""
        return {service.name: service for service in self._services}

    @property
    def events(self) -> list[Event]:
        """Every event, in the order of publication."""
        return self._observed.events

    def said(self, cls: type[E], *, saga: str | None = None) -> list[E]:
        """Return what was said of a class, decoded, in the order of publication.

        :param saga: only within this saga.
        """
        type_ = event_type_of(cls)
        return [
            decode_data(event.data, cls, event_id=event.id, event_type=type_)
            for event in self.events
            if event.type == type_ and saga in {None, event.correlationid}
        ]

    @property
    def choreography(self) -> Choreography:
        """What the services on the stage declare, for the lint and the map."""
        return Choreography(service.manifest for service in self._services)

    @property
    def undeclared(self) -> list[str]:
        """What a service published and does not declare: the map and the lint do not know of it."""
        return self._observed.undeclared(self.choreography)

    @property
    def unpublished(self) -> list[str]:
        """Event types that are declared and were not published: what the test has not seen."""
        return self._observed.unpublished(self.choreography)

    # --- inside ---

    async def _collect(self) -> bool:
        """Take what services have published; True if there was something."""
        found = False
        for service in self._services:
            for event, topic in [*await service.take_due(), *await service.take_published()]:
                self._observed.note(event, service.name)
                self._route(event, topic)
                found = True
        return found

    def _route(self, event: Event, topic: str) -> None:
        self._letters += [
            _Letter(service, event, topic, self._duplicates)
            for service in self._services
            if service.is_bound_to(topic)
        ]

    def _choose(self) -> int:
        """Return which letter is next: one that no earlier letter of its key to the same service waits before."""
        if self._random is None:
            return 0
        heads: dict[tuple[str, str], int] = {}
        for index, letter in enumerate(self._letters):
            lane = letter.event.partitionkey or f"{index}"
            heads.setdefault((letter.to.name, lane), index)
        return self._random.choice(list(heads.values()))

    async def _deliver(self, letter: _Letter) -> None:
        try:
            with anyio.fail_after(_PATIENCE):
                handed = await self._post.deliver(letter.to.name, letter.event, letter.topic)
        except TimeoutError as error:
            raise RehearsalError(
                f"{letter.to.name} has not finished with {letter.event.type} after {_PATIENCE:g} seconds: its handler "
                "waits for something that does not come."
            ) from error
        if handed.refused:
            raise RehearsalError(f"{letter.to.name} refused {letter.event.type}, as Inbox(unknown='reject') says.")
        if letter.again:
            self._letters.append(replace(letter, again=False))
        await self._complain(letter.to)

    async def _settle(self) -> bool:
        """Compensate and retry what is due; True if there was something."""
        if await self._compensate():
            return True
        for service in self._services:
            if await service.settle_parked():
                await self._complain(service)
                return True
        return False

    async def _compensate(self) -> bool:
        """Carry out one compensation that is due, of any service; True if there was one."""
        services = list(self._services)
        if self._undoing is not None:
            self._undoing.shuffle(services)
        for service in services:
            if await service.compensate():
                return True
        return False

    async def _complain(self, service: RehearsedService) -> None:
        if not self._strict or not service.failures:
            return
        parked = await service.parked()
        errors = "; ".join(message.error for message in parked if message.reason == "failed")
        raise RehearsalError(f"{'; '.join(service.failures)}. {errors}")


def _do_not_wait_for_the_disk(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.close()
