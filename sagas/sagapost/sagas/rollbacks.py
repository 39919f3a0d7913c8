"""What happens to a saga in a transaction of this service: undo intents, the pivot, the begin of a rollback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.clock import Clock
from sagapost.core.errors import ConfigurationError
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.compensations import CompensationDeclaration, CompensationFunction
from sagapost.sagas.events import RollbackStarted
from sagapost.sagas.participant import Participant
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.tasks import Close, RollBack, has_open_task, open_task, withdraw_tasks

__all__ = ["Rollbacks"]

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
    ) -> None:
        """Record an undo intent in the caller's transaction; see `StepContext.on_rollback`."""
        name = self.name_of(compensation)
        packed = self._compensations[name].pack(arguments)
        ledger = self.ledger(session)
        first = ledger.record_first(saga, name, packed, step_event)
        if first is not None:
            if (await session.execute(first)).scalar_one():
                return
        else:
            await session.execute(ledger.ensure(saga))
            await session.execute(ledger.record(saga, name, packed, step_event))
        row = (await session.execute(ledger.lock(saga))).one()
        if row.state == "rolled_back":
            await session.execute(ledger.reopen(saga))

    async def begin_rollback(
        self, session: AsyncSession, saga: str, *, reason: str, cause: str | None, force: bool = False
    ) -> bool:
        """Start the rollback in the caller's transaction; False if it has started already.

        Past the point of no return (`StepContext.pivot`) nothing is undone: False, and a task asks a person what to
        do. Open tasks of the saga are withdrawn once it is rolled back.

        :param force: roll back past the point of no return too.
        """
        ledger = self.ledger(session)
        await session.execute(ledger.ensure(saga))
        row = (await session.execute(ledger.lock(saga))).one()
        if row.state != "running":
            return False
        if row.pivot_reason is not None and not force:
            await self._ask_after_pivot(session, saga, reason=reason, pivot=row.pivot_reason)
            return False
        await withdraw_tasks(self, session, saga, why=f"The saga is rolled back: {reason}")
        await session.execute(ledger.begin(saga, reason=reason, cause=cause))
        remaining: int = (await session.execute(ledger.remaining(saga))).scalar_one()
        if not remaining:
            # Kept all the same: a step that comes late finds here that it must undo itself.
            await session.execute(ledger.finish(saga))
        await self.tell(session, RollbackStarted(self.service, reason, remaining), saga)
        return True

    async def pivot(self, session: AsyncSession, saga: str, *, reason: str) -> bool:
        """Record the point of no return in the caller's transaction; see `StepContext.pivot`."""
        ledger = self.ledger(session)
        await session.execute(ledger.ensure(saga))
        row = (await session.execute(ledger.lock(saga))).one()
        if row.state != "running":
            return False
        await session.execute(ledger.pivot(saga, reason))
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
