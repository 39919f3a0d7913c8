"""The compensator: undoes what is due, newest step first, each compensation in a transaction of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

import anyio
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from sagapost.core.backoff import Backoff
from sagapost.core.context import SagaContext, bind
from sagapost.core.databases import Conflict, Outage, drop_useless_connections, kit_of, wrapped
from sagapost.core.observer import NullObserver, Observer
from sagapost.sagas import observations as obs
from sagapost.sagas.context import CompensationContext
from sagapost.sagas.events import CompensationDone, CompensationNeedsHuman, RolledBack
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
    """Longest one compensation may take."""
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=5))
    )
    """Wait between attempts to reach the database. Burns no attempt of any compensation."""


class Compensator:
    """Runs the compensations of one service. Any number may run against one database; each saga is taken by one.

    Every compensation is one transaction: what the function writes and publishes, and its mark in the ledger. It runs
    at least once and takes effect once. A failure is recorded and tried again with growing waits; after
    `max_attempts` the saga is stuck until a person decides, and its older steps wait, since order is reverse order.
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
        self._kit = kit_of(engine)
        drop_useless_connections(engine)
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._settings = settings if settings is not None else CompensatorSettings()
        self._observer = observer if observer is not None else NullObserver()
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Let `run` return after the compensation in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Undo what is due until `stop` is called or the task is cancelled. Database outages are waited out."""
        attempt = 0
        while not self._stopping.is_set():
            pause = self._settings.poll_interval.total_seconds()
            try:
                worked = await self.step()
                attempt = 0
                if worked:
                    continue
            except Exception as error:
                if not isinstance(self._kit.classify(error), Outage | Conflict):
                    raise
                attempt += 1
                pause = self._settings.reconnect.seconds(attempt)
                self._observer.notify(obs.LedgerUnavailable(self._sagas.service, type(error).__name__, attempt, pause))
            with anyio.move_on_after(pause):
                await self._stopping.wait()

    async def step(self) -> bool:
        """Carry out the compensation that has been due the longest; False if none is due."""
        sagas = self._sagas
        told: list[obs.SagaObservation] = []
        async with self._sessions() as session, session.begin():
            ledger = sagas.ledger(session)
            claimed = (await session.execute(ledger.claim())).one_or_none()
            turn = ledger.take_turn()
            if claimed is not None and turn is not None:
                await session.execute(turn)
                claimed = (await session.execute(ledger.claim())).one_or_none()
            if claimed is None:
                return False
            saga: str = claimed.saga
            with bind(SagaContext(correlationid=saga, causationid=claimed.rollback_cause)):
                row = (await session.execute(ledger.next_intent(saga))).one_or_none()
                if row is None:
                    await self._finish(session, ledger, saga, told.append)
                else:
                    await self._undo(
                        session,
                        ledger,
                        saga,
                        intent_of(row),
                        (claimed.rollback_reason, claimed.rollback_cause),
                        told.append,
                    )
        # Only what is committed has happened.
        for event in told:
            self._observer.notify(event)
        return True

    async def _undo(
        self,
        session: AsyncSession,
        ledger: Ledger,
        saga: str,
        intent: Intent,
        why: tuple[str, str | None],
        tell: Callable[[obs.SagaObservation], None],
    ) -> None:
        sagas, attempts = self._sagas, intent.attempts + 1
        reason, cause = why
        try:
            async with session.begin_nested():
                declaration = sagas.compensations[intent.name]
                context = CompensationContext(
                    session=session,
                    outbox=sagas.outbox,
                    saga=saga,
                    reason=reason,
                    cause=cause,
                    step_event=intent.step_event,
                    attempt=attempts,
                )
                with anyio.fail_after(self._settings.timeout.total_seconds()):
                    result = await declaration.function(context, **declaration.unpack(intent.arguments))
        except Exception as error:
            if wrapped(error) is not None and self._kit.is_outage(error):
                raise
            await self._failed(session, ledger, saga, intent, error, tell)
            return
        if result is not None:
            await session.execute(ledger.postpone(saga, result.after))
            tell(obs.CompensationUnderWay(sagas.service, saga, intent.name, result.after.total_seconds()))
            return
        await session.execute(ledger.done(intent.id, attempts=attempts))
        remaining: int = (await session.execute(ledger.remaining(saga))).scalar_one()
        await sagas.tell(session, CompensationDone(sagas.service, intent.name, remaining), saga)
        tell(obs.Compensated(sagas.service, saga, intent.name, attempts, remaining))
        if not remaining:
            await self._finish(session, ledger, saga, tell)

    async def _finish(
        self, session: AsyncSession, ledger: Ledger, saga: str, tell: Callable[[obs.SagaObservation], None]
    ) -> None:
        await session.execute(ledger.finish(saga))
        await self._sagas.tell(session, RolledBack(self._sagas.service), saga)
        tell(obs.SagaRolledBack(self._sagas.service, saga))

    async def _failed(
        self,
        session: AsyncSession,
        ledger: Ledger,
        saga: str,
        intent: Intent,
        error: Exception,
        tell: Callable[[obs.SagaObservation], None],
    ) -> None:
        """Record the failure in the ledger; the savepoint has undone what the function did."""
        sagas, settings, attempts = self._sagas, self._settings, intent.attempts + 1
        if isinstance(error, KeyError) and intent.name not in sagas.compensations:
            text = f"no compensation named {intent.name!r} is registered any more"
        else:
            text = f"{type(error).__name__}: {error}"
        give_up = attempts >= settings.max_attempts
        await session.execute(ledger.failed(intent.id, attempts=attempts, error=text, give_up=give_up))
        if give_up:
            await session.execute(ledger.stick(saga))
            await sagas.tell(session, CompensationNeedsHuman(sagas.service, intent.name, text, attempts), saga)
            tell(obs.CompensationGivenUp(sagas.service, saga, intent.name, attempts, text))
            return
        delay = settings.retry.delay(attempts)
        await session.execute(ledger.postpone(saga, delay))
        tell(obs.CompensationFailed(sagas.service, saga, intent.name, attempts, delay.total_seconds(), text))
