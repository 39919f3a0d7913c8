"""The compensator: undoes what is due, newest step first, each compensation in a transaction of its own.

What a compensation does runs guarded, like a handler (`sagapost.inbox.handling.guarded`); a failure is counted in a
second transaction, which does not depend on what became of the first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import await_only

from sagapost.core.backoff import Backoff, wait_for_another_version
from sagapost.core.context import SagaContext, bind
from sagapost.core.databases import aware
from sagapost.core.errors import ConfigurationError, HandlerError, StoreUnavailableError
from sagapost.core.life import Runtime, Signal
from sagapost.core.observer import Observer
from sagapost.inbox.declared.outcomes import NotKnown
from sagapost.inbox.handling.faults import clean, kind_of, text_of
from sagapost.inbox.handling.guarded import Guard, GuardedTransaction, GuardError, LateError, Progress
from sagapost.inbox.handling.invocation import Isolated
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.kept.database import Database, Link
from sagapost.sagas import observations as obs
from sagapost.sagas.compensations import CompensationDeclaration, NotYet
from sagapost.sagas.context import CompensationContext
from sagapost.sagas.events import CompensationDone, CompensationStuck, RolledBack
from sagapost.sagas.ledger import Intent, Ledger, intent_of
from sagapost.sagas.sagas import Sagas

__all__ = ["Compensator", "CompensatorSettings"]

_log = logging.getLogger("sagapost.sagas")


@dataclass(frozen=True, slots=True)
class CompensatorSettings:
    """Settings of one compensator."""

    poll_interval: timedelta = timedelta(seconds=1)
    """How often due compensations are looked for; bounds how late one starts."""
    max_attempts: int = 10
    """Attempts on one compensation before a person must decide. With the default waits: about an hour."""
    retry: Backoff = field(default_factory=lambda: Backoff(base=timedelta(seconds=1), cap=timedelta(minutes=15)))
    """Wait between attempts on one compensation."""
    timeout: timedelta = timedelta(minutes=1)
    """Longest one compensation may take; over it, it is rolled back and the attempt counts as failed."""
    unknown_for: timedelta = timedelta(days=1)
    """How long a compensation that this version does not know waits for one that does, before the saga is stuck. Uses
    up no attempt. Shorter than a deployment: old replicas give up what only the new ones know. 0: stuck at once."""
    concurrency: int = 4
    """Compensations at a time, of different sagas, each on a connection of the engine's pool. Range 1 to 100. A
    database with one writer: 1 is used there."""
    database_timeout: timedelta = timedelta(seconds=15)
    """Longest wait for the database where no compensation runs. Over it the database counts as unreachable."""
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=5))
    )
    """Wait between attempts to reach the database. Burns no attempt of any compensation."""

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 100:
            raise ConfigurationError(f"CompensatorSettings.concurrency is {self.concurrency}; use 1 to 100.")


@dataclass(slots=True)
class _Turn:
    """One look for what is due, and what came of it."""

    claimed: Callable[[], None]
    """Called once it is known what is to be undone, and that nobody else does it."""
    saga: str = ""
    intent: Intent | None = None
    failure: Exception | None = None
    told: list[obs.SagaObservation] = field(default_factory=list[obs.SagaObservation])
    """What is true once the transaction is committed."""


class Compensator:
    """Runs the compensations of one service. Any number may run against one database; each saga is taken by one.

    Every compensation is one transaction: what the function writes and publishes, and its mark in the ledger. It runs
    at least once and takes effect once. A failure is recorded and tried again with growing waits; after
    `max_attempts`, or at once if the function breaks its contract (ends the transaction, returns what is neither None
    nor `NotYet`), the saga is stuck until a person decides, and its older steps wait, since order is reverse order.

    While a compensation waits for somebody, other sagas go on, and so do the events of its own saga.
    """

    def __init__(
        self,
        sagas: Sagas,
        engine: AsyncEngine,
        *,
        settings: CompensatorSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._sagas = sagas
        self._settings = settings if settings is not None else CompensatorSettings()
        self._runtime = Runtime(f"compensator {sagas.service}", observer=observer, backoff=self._settings.reconnect)
        self._observer = self._runtime.observer
        self._database = Database(engine, concurrency=1, timeout=self._settings.database_timeout)
        self._sessions = HandlerSessions(None, sagas.outbox)
        self._guard = Guard(
            self._database, self._settings.timeout.total_seconds(), setting="CompensatorSettings.timeout"
        )
        self._looking = False
        """One worker at a time looks for what is due."""
        self._more = Signal()
        """Something was claimed: more may be due."""
        self._taken: set[str] = set()
        """Sagas in flight here, until what came of them is recorded. A function that commits gives its lock away."""

    def stop(self) -> None:
        """Let `run` return after the compensations in flight."""
        self._runtime.stop.set()

    async def run(self) -> None:
        """Undo what is due until `stop` is called or the task is cancelled. Database outages are waited out."""
        workers = 1 if self._database.kit.one_writer else self._settings.concurrency
        async with anyio.create_task_group() as tasks:
            for _ in range(workers):
                tasks.start_soon(self._work)

    async def step(self) -> bool:
        """Carry out the compensation that has been due the longest; False if none is due.

        :raises StoreUnavailableError: if the database cannot be reached.
        """
        link = Link(self._database)
        worked: list[bool] = []
        failed: list[StoreUnavailableError] = []

        async def take_turn() -> None:
            try:
                worked.append(await self._take_turn(link, lambda: None))
            except StoreUnavailableError as error:
                failed.append(error)
            finally:
                await link.give_back()

        # In a task of our own: who cancels the caller's task cancels it by its scope.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turn)
        for error in failed:
            raise error
        return worked[0]

    # --- workers ---

    async def _work(self) -> None:
        link = Link(self._database)

        async def take_turn() -> timedelta | None:
            worked = False
            try:
                worked = await self._look(link)
            finally:
                if not worked:
                    await link.give_back()
            return timedelta(0) if worked else None

        try:
            await self._runtime.every(self._settings.poll_interval, take_turn, wake=self._more)
        finally:
            await link.give_back()

    async def _look(self, link: Link) -> bool:
        """Take a turn, unless somebody else is looking already; let the next one look once something is claimed."""
        if self._looking:
            return False
        self._looking = True
        claimed = False

        def let_others_look() -> None:
            nonlocal claimed
            claimed, self._looking = True, False
            self._more.set()

        try:
            return await self._take_turn(link, let_others_look)
        finally:
            if not claimed:
                self._looking = False

    async def _take_turn(self, link: Link, claimed: Callable[[], None]) -> bool:
        turn = _Turn(claimed)

        def work(connection: Connection, outer: AsyncConnection, progress: Progress) -> bool:
            return self._claim_and_undo(connection, outer, progress, turn)

        try:
            try:
                worked = await self._guard.run(link, work)
            except (LateError, HandlerError) as error:
                worked, turn.failure = True, error
            if turn.failure is not None:
                await link.give_back()
                turn.told = await self._count(turn, turn.failure)
        finally:
            self._taken.discard(turn.saga)
        # Only what is committed has happened.
        for event in turn.told:
            self._observer.notify(event)
        return worked

    # --- in the greenlet, in one transaction ---

    def _claim_and_undo(self, connection: Connection, outer: AsyncConnection, progress: Progress, turn: _Turn) -> bool:
        ledger = self._sagas.ledger(AsyncSession(outer))
        claimed = connection.execute(ledger.claim(self._taken)).one_or_none()
        writers_turn = ledger.take_turn()
        if claimed is not None and writers_turn is not None:
            connection.execute(writers_turn)
            claimed = connection.execute(ledger.claim(self._taken)).one_or_none()
        if claimed is None:
            connection.rollback()
            return False
        turn.saga = claimed.saga
        self._taken.add(turn.saga)
        if connection.execute(ledger.due(turn.saga)).one_or_none() is None:
            # Somebody else has dealt with it between the look and the lock.
            connection.rollback()
            return True
        row = connection.execute(ledger.next_intent(turn.saga)).one_or_none()
        turn.intent = intent_of(row) if row is not None else None
        turn.claimed()
        with bind(_context_of(claimed)):
            transaction = GuardedTransaction(self._database, self._sessions, connection, outer, progress)
            try:
                if turn.intent is None:
                    await_only(self._end_rollback(transaction.session, ledger, turn))
                else:
                    self._undo(transaction, ledger, turn, turn.intent, claimed)
                transaction.commit()
            except BaseException as raised:
                turn.failure = transaction.failure(raised)
        return True

    def _undo(
        self, transaction: GuardedTransaction, ledger: Ledger, turn: _Turn, intent: Intent, claimed: Any
    ) -> None:
        declaration = self._sagas.compensations.get(intent.name)
        if declaration is None:
            raise NotKnown(
                f"This version of the service {self._sagas.service!r} has no compensation named {intent.name!r}. "
                "Deploy one that has, keep registering it until no saga needs it any more (`name=` lets the function "
                "have another one), or undo the step by other means and settle it."
            )
        context = CompensationContext(
            session=transaction.session,
            sagas=self._sagas,
            saga=turn.saga,
            reason=claimed.rollback_reason,
            cause=claimed.rollback_cause,
            step_event=intent.step_event,
            attempt=intent.attempts + 1,
            intent=intent.id,
            key=intent.key,
        )
        saga = _context_of(claimed)
        result = transaction.call(intent.name, Isolated(_call(declaration, context, intent, saga)))
        transaction.write()
        await_only(self._mark(transaction.session, ledger, turn, intent, result))

    # --- what is written beside it ---

    async def _mark(
        self, session: AsyncSession, ledger: Ledger, turn: _Turn, intent: Intent, result: NotYet | None
    ) -> None:
        """Write down, in the compensation's own transaction, that it is done, or in progress."""
        sagas, saga, attempts = self._sagas, turn.saga, intent.attempts + 1
        await session.execute(ledger.lock(saga))
        if result is not None:
            await session.execute(ledger.postpone(saga, result.after))
            under_way = obs.CompensationUnderWay(sagas.service, saga, intent.name, result.after.total_seconds())
            turn.told.append(under_way)
            return
        await session.execute(ledger.done(intent.id, attempts=attempts))
        remaining: int = (await session.execute(ledger.remaining(saga))).scalar_one()
        await sagas.tell(session, CompensationDone(sagas.service, intent.name, remaining), saga)
        turn.told.append(obs.Compensated(sagas.service, saga, intent.name, attempts, remaining))
        if not remaining:
            await self._finish(session, ledger, turn)

    async def _end_rollback(self, session: AsyncSession, ledger: Ledger, turn: _Turn) -> None:
        await session.execute(ledger.lock(turn.saga))
        if not (await session.execute(ledger.remaining(turn.saga))).scalar_one():
            await self._finish(session, ledger, turn)

    async def _finish(self, session: AsyncSession, ledger: Ledger, turn: _Turn) -> None:
        await session.execute(ledger.finish(turn.saga))
        await self._sagas.tell(session, RolledBack(self._sagas.service), turn.saga)
        turn.told.append(obs.SagaRolledBack(self._sagas.service, turn.saga))

    async def _count(self, turn: _Turn, error: Exception) -> list[obs.SagaObservation]:
        """Record a failure, in a transaction of its own; return what is then true.

        :raises StoreUnavailableError: if the database went away; the attempt is not counted then.
        """
        text = clean(error) if isinstance(error, GuardError | ConfigurationError | NotKnown) else text_of(error)
        told: list[obs.SagaObservation] = []

        async def count(connection: AsyncConnection) -> None:
            session = AsyncSession(connection, expire_on_commit=False)
            ledger = self._sagas.ledger(session)
            if (writers_turn := ledger.take_turn()) is not None:
                await session.execute(writers_turn)
            await session.execute(ledger.lock(turn.saga))
            await self._count_in(session, ledger, turn, error, text, told)
            await session.flush()

        await self._database.run_async(count)
        return told

    async def _count_in(
        self,
        session: AsyncSession,
        ledger: Ledger,
        turn: _Turn,
        error: Exception,
        text: str,
        told: list[obs.SagaObservation],
    ) -> None:
        sagas, settings, saga, intent = self._sagas, self._settings, turn.saga, turn.intent
        if intent is None:
            # Not a compensation: what ends the rollback could not be written.
            await session.execute(ledger.postpone(saga, settings.retry.cap))
            _log.error("the end of the rollback of saga %s could not be recorded: %s", saga, text)
            return
        if isinstance(error, NotKnown) and await self._await_another_version(session, ledger, turn, intent, told):
            return
        attempts = intent.attempts + 1
        give_up = attempts >= settings.max_attempts or isinstance(error, HandlerError | NotKnown)
        counted: Any = await session.execute(ledger.failed(intent.id, attempts=attempts, error=text, give_up=give_up))
        if not counted.rowcount:
            # Carried out, counted or settled by somebody else since.
            return
        if give_up:
            await session.execute(ledger.stick(saga))
            # What leaves the service says what kind of error it was; the text may quote data.
            kind = kind_of(error.__cause__ or error)
            await sagas.tell(session, CompensationStuck(sagas.service, intent.name, kind, attempts), saga)
            told.append(obs.SagaStuck(sagas.service, saga, intent.name, attempts, text))
            return
        delay = settings.retry.delay(attempts)
        await session.execute(ledger.postpone(saga, delay))
        told.append(obs.CompensationFailed(sagas.service, saga, intent.name, attempts, delay.total_seconds(), text))

    async def _await_another_version(
        self, session: AsyncSession, ledger: Ledger, turn: _Turn, intent: Intent, told: list[obs.SagaObservation]
    ) -> bool:
        """Let an intent wait that this version does not know, without counting; False if it has waited enough."""
        since = aware((await session.execute(ledger.next_since(turn.saga))).scalar_one())
        waited = await self._sagas.now(session) - since
        delay = wait_for_another_version(waited, longest=self._settings.unknown_for)
        if delay is None:
            return False
        reason = str(turn.failure)
        noted: Any = await session.execute(ledger.note(intent.id, reason))
        await session.execute(ledger.postpone(turn.saga, delay))
        if noted.rowcount:
            told.append(obs.CompensationNotKnown(self._sagas.service, turn.saga, intent.name, reason))
        return True


async def _call(
    declaration: CompensationDeclaration, context: CompensationContext, intent: Intent, saga: SagaContext
) -> NotYet | None:
    """Call a compensation.

    :raises HandlerError: if it returned what is no answer.
    """
    with bind(saga):
        returned = await declaration.function(context, **declaration.unpack(intent.arguments))
    # Whatever its annotations say.
    result: Any = returned
    if result is None:
        return None
    if isinstance(result, NotYet):
        return result
    if isinstance(result, Coroutine):
        # It will never be awaited, which is what the error says.
        result.close()
    raise HandlerError(
        f"The compensation {intent.name!r} returned a {type(result).__name__}. Return nothing when it is done, or "
        "NotYet(after=timedelta(...)) while it is in progress; raise if it failed. Its transaction was rolled back."
    )


def _context_of(claimed: Any) -> SagaContext:
    """Return the context in which a rollback goes on: its cause, and the trace in which it began."""
    trace = (claimed.rollback_traceparent, claimed.rollback_tracestate)
    return SagaContext(claimed.saga, claimed.rollback_cause, *trace)
