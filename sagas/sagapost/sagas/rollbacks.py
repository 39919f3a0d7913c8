"""What happens to a saga in a transaction of this service: undo intents, pivot, end, the begin of a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Delete, Row, delete
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.clock import Clock
from sagapost.core.context import current
from sagapost.core.databases import aware
from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.outcomes import Reject
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.compensations import CompensationDeclaration, CompensationFunction
from sagapost.sagas.events import RollbackStarted
from sagapost.sagas.participant import Participant
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.tasks import Close, RollBack, has_open_task, open_task, withdraw_tasks

__all__ = ["Rollbacks"]

_CLOCKS_DIFFER = timedelta(seconds=1)
"""How far the clocks of a publisher and of the database may be apart, where hosts are kept in time."""

_AFTER_PIVOT = "rollback-past-pivot"
"""The task that is opened where a rollback is asked for that must not be."""


class Rollbacks(Participant):
    """What a service undoes, and when. Knows compensations by the names under which the ledger keeps them."""

    def __init__(
        self,
        service: str,
        *,
        outbox: Outbox,
        tables: SagaTables | None = None,
        announce: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(service, outbox=outbox, tables=tables, announce=announce, clock=clock)
        self._compensations: dict[str, CompensationDeclaration] = {}
        self._names: dict[CompensationFunction, str] = {}

    @property
    def compensations(self) -> Mapping[str, CompensationDeclaration]:
        """What is registered, by name."""
        return self._compensations

    def name_of(self, compensation: CompensationFunction) -> str:
        """Return the name a function is registered under.

        :raises ConfigurationError: if it is not registered.
        """
        name = self._names.get(compensation)
        if name is None:
            called = getattr(compensation, "__qualname__", repr(compensation))
            raise ConfigurationError(
                f"{called} is no compensation of the service {self.service!r}. Decorate it with @sagas.compensation()."
            )
        return name

    async def record(
        self,
        session: AsyncSession,
        saga: str,
        compensation: CompensationFunction,
        arguments: Mapping[str, Any],
        *,
        step_event: str | None,
        key: str | None = None,
        begun: datetime | None = None,
    ) -> bool:
        """Record an undo intent in the caller's transaction; return whether the saga goes on.

        False: it is being rolled back, or was; see `StepContext.on_rollback`.

        :param key: the ordering key of the step's event; what the compensation publishes has it too.
        :param begun: when the event that is handled was published, if it has no cause, so that it may begin the saga.
        :raises Reject: if the saga has been here before and is over.
        """
        name = self.name_of(compensation)
        packed = self._compensations[name].pack(arguments)
        ledger = self.ledger(session)
        first = ledger.record_first(saga, name, packed, step_event, key)
        if first is not None:
            if (await session.execute(first)).scalar_one():
                return True
        else:
            await session.execute(ledger.ensure(saga))
            await session.execute(ledger.record(saga, name, packed, step_event, key))
        row = (await session.execute(ledger.lock(saga))).one()
        await self._require_new(session, saga, row, step_event=step_event, begun=begun)
        if row.state == "running":
            return True
        if row.state == "rolled_back":
            await session.execute(ledger.reopen(saga))
        return False

    async def rolling_back(
        self, session: AsyncSession, saga: str, *, step_event: str | None, begun: datetime | None = None
    ) -> bool:
        """Return whether the saga is being rolled back, or was; see `StepContext.rolling_back`.

        If not, it stays so until the caller's transaction ends: a rollback waits for that.

        :param begun: when the event that is handled was published, if it has no cause, so that it may begin the saga.
        :raises Reject: if it begins a saga that has been here before and is over.
        """
        row = await self._locked(session, saga)
        await self._require_new(session, saga, row, step_event=step_event, begun=begun)
        return bool(row.state != "running")

    async def goes_on(self, session: AsyncSession, saga: str, *, rolling_back: bool = False) -> bool:
        """Return whether the saga is in flight here, and keep it so until the caller's transaction ends.

        :param rolling_back: what to return where it is rolled back, or was: others may still be at it.
        """
        row = await self._locked(session, saga)
        return row.completed_at is None if row.state == "running" else rolling_back

    async def _locked(self, session: AsyncSession, saga: str) -> Row[Any]:
        """Lock the saga's row, which is made if there is none, and read it."""
        ledger = self.ledger(session)
        await session.execute(ledger.ensure(saga))
        return (await session.execute(ledger.lock(saga))).one()

    async def _require_new(
        self, session: AsyncSession, saga: str, row: Row[Any], *, step_event: str | None, begun: datetime | None
    ) -> None:
        """Refuse a second beginning: what it did would be undone with the first, or the first with it.

        An event without a cause that was published after the saga had ended, or its rollback begun, is none of the
        steps that come late. Clocks of hosts differ, so where nothing is recorded here before it, it might have been
        overtaken by its own cancellation: then it must be later by more than that.
        """
        over = row.rollback_started_at if row.rollback_started_at is not None else row.completed_at
        if begun is None or over is None or aware(over) > begun:
            return
        others: int = (await session.execute(self.ledger(session).begun_by_others(saga, step_event))).scalar_one()
        if others or begun - aware(over) > _CLOCKS_DIFFER:
            ended = "has completed" if row.state == "running" else "was rolled back"
            raise Reject(
                f"The saga {saga!r} {ended} in the service {self.service!r}, and event {step_event} begins it "
                "again. Give each attempt an id of its own (the order's number as a business key: "
                "`saga.start(keys=...)`), or publish what goes on from a handler of the saga."
            )

    async def begin_rollback(
        self, session: AsyncSession, saga: str, *, reason: str, cause: str | None, force: bool = False
    ) -> bool:
        """Start the rollback in the caller's transaction; False if it has started already.

        Past the point of no return (`StepContext.pivot`), and once the saga has completed, nothing is undone: False,
        and a task asks a person what to do. What waits in this service for the saga ends with its rollback: deadlines
        are taken back, open tasks withdrawn.

        :param force: roll back past the point of no return too.
        """
        ledger = self.ledger(session)
        row = await self._locked(session, saga)
        if row.state != "running":
            return False
        pivot = row.pivot_reason if row.completed_at is None else "the saga has completed"
        if pivot is not None and not force:
            await self._ask_after_pivot(session, saga, reason=reason, pivot=pivot)
            return False
        await session.flush()  # what this transaction itself has set may not be written yet
        await session.execute(self._deadlines_of(saga))
        await withdraw_tasks(self, session, saga, why=f"The saga is rolled back: {reason}")
        running = current()
        trace = (running.traceparent, running.tracestate) if running is not None else (None, None)
        await session.execute(ledger.begin(saga, reason=reason, cause=cause, trace=trace))
        remaining: int = (await session.execute(ledger.remaining(saga))).scalar_one()
        if not remaining:
            # Kept all the same: a step that comes late finds here that it must undo itself.
            await session.execute(ledger.finish(saga))
        await self.tell(session, RollbackStarted(self.service, reason, remaining), saga)
        return True

    def deadline_name(self, name: str) -> str:
        """Return the name under which the outbox keeps a deadline: services may share an outbox and a saga."""
        return f"{self.service}: {name}"

    def _deadlines_of(self, saga: str) -> Delete:
        table = self.outbox.tables.scheduled
        mine = table.c.name.startswith(self.deadline_name(""), autoescape=True)
        return delete(table).where(table.c.correlationid == saga, mine)

    async def pivot(self, session: AsyncSession, saga: str, *, reason: str) -> bool:
        """Record the point of no return in the caller's transaction; see `StepContext.pivot`."""
        if (await self._locked(session, saga)).state != "running":
            return False
        await session.execute(self.ledger(session).pivot(saga, reason))
        return True

    async def complete(self, session: AsyncSession, saga: str) -> bool:
        """Record in the caller's transaction that the saga has ended well; see `StepContext.complete`."""
        if (await self._locked(session, saga)).state != "running":
            return False
        await session.flush()  # what this transaction itself has set may not be written yet
        await session.execute(self._deadlines_of(saga))
        await session.execute(self.ledger(session).complete(saga))
        return True

    async def _ask_after_pivot(self, session: AsyncSession, saga: str, *, reason: str, pivot: str) -> None:
        if await has_open_task(self, session, saga, _AFTER_PIVOT):
            return
        await open_task(
            self,
            session,
            saga,
            _AFTER_PIVOT,
            title=f"A rollback was asked for past the point of no return ({pivot}): {reason}",
            outcomes={"go-on": Close(), "roll-back-anyway": RollBack(force=True)},
        )
