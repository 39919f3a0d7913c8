"""`Island`: an orchestrated part of a choreographed saga, declared step by step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.databases import kit_of
from sagapost.core.errors import ConfigurationError
from sagapost.core.naming import event_type_of
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.outcomes import Reject
from sagapost.inbox.declared.settings import RetryPolicy
from sagapost.sagas.choreography.manifest import Step
from sagapost.sagas.compensations import NotYet
from sagapost.sagas.context import CompensationContext, StepContext
from sagapost.sagas.orchestration.coordinator import Coordinator
from sagapost.sagas.orchestration.declaration import ONCE, Build, IslandStep, sent_by, types_of
from sagapost.sagas.orchestration.messages import StepDecided, StepTimedOut
from sagapost.sagas.orchestration.picture import steps_of
from sagapost.sagas.orchestration.plan import IslandPlan
from sagapost.sagas.orchestration.runs import Answered, Runs
from sagapost.sagas.sagas import Sagas

__all__ = ["Island"]

_B = TypeVar("_B", bound=Callable[..., Any])

_ASK_AGAIN = timedelta(minutes=1)
"""How often a rollback looks whether the island is undone, should it not be told."""


class Island(IslandPlan):
    """Steps that one service runs in an order it decides: a coordinator, for use inside one service.

    Each step sends a command as an event and waits for the event that answers it; whoever handles the command (the
    same service, or a worker of its own) publishes the answer as any handler does. The state of a run is kept in the
    service's own database and changes in the transaction of the event that changes it.

    To the saga around it, the island is one step: it begins with an event, ends with an event, and is undone as a
    whole when the saga is rolled back. Declare it in a module beside the inbox, before the consumer starts.

    :param name: of the island within the service; recorded with its runs.
    :param state: class of a run's state, as for event classes; commands are made from it.
    :param sagas: the service's part in sagas; `inbox` must be made with ``context=sagas.context``.
    :raises ConfigurationError: if the name is taken or the inbox does not know `sagas`.
    """

    def __init__(self, name: str, *, state: type, sagas: Sagas, inbox: Inbox) -> None:
        if getattr(inbox.context, "sagas", None) is not sagas:
            raise ConfigurationError(
                f"The inbox {inbox.name!r} does not know the Sagas of the island {name!r}. "
                "Make it with Inbox(..., context=sagas.context)."
            )
        super().__init__(name, state=state, sagas=sagas)
        self._inbox = inbox
        self._handled: set[type] = set()
        self._parallel = False
        self._replies: dict[str, list[IslandStep]] = {}
        sagas.add_island(self)
        self._undo = sagas.compensation(name=f"island {name}")(self._undo_run)
        self._transaction = f"island {name}"
        inbox.on(self.timeout_type, payload=StepTimedOut, transaction=self._transaction)(self._timed_out)
        inbox.on(self.decision_type, payload=StepDecided, transaction=self._transaction)(self._decided)

    # --- declaring ---

    def step(
        self,
        *,
        reply: type | Iterable[type],
        failures: Iterable[type] = (),
        retry_on: Iterable[type] = (),
        retry: RetryPolicy = ONCE,
        deadline: timedelta | None = None,
        when: Callable[[Any], bool] | None = None,
        pivot: bool = False,
        escalate: bool = False,
        name: str | None = None,
    ) -> Callable[[Build], IslandStep]:
        """Declare the next step; the decorated ``def function(state) -> Command`` makes its command.

        ::

            @fulfilment.step(reply=ItemsPicked, failures=[ItemMissing], deadline=timedelta(minutes=30))
            def pick(state: Fulfilment) -> PickItems:
                return PickItems(state.order_id)

        :param reply: events that say it is done.
        :param failures: events that say it cannot be done: the run is undone.
        :param retry_on: events that say not now: it is tried again by `retry`, and cannot be done after its last try.
        :param retry: tries, and the waits between them, after `retry_on` and after a missed deadline.
        :param deadline: how long each try waits for its answer.
        :param when: ``def when(state) -> bool``; False: the step is left out of this run.
        :param pivot: once it is done the run only goes forward, and so does the saga in this service: later steps
            that cannot be done become tasks for a person.
        :param escalate: after the last try, ask a person; default: undo the run.
        :param name: default: the function's name. It is recorded with the runs.
        :raises ConfigurationError: if the name is taken, the function does not say what it sends, or a parallel step
            has no deadline.
        """
        replies = (reply,) if isinstance(reply, type) else tuple(reply)
        failing, not_now = tuple(failures), tuple(retry_on)

        def declare(function: Build) -> IslandStep:
            step = IslandStep(
                name=self._new_name(name if name is not None else function.__name__, deadline),
                build=function,
                command=event_type_of(sent_by(function)),
                stage=self._next_stage(),
                position=len(self.steps),
                replies=types_of(replies),
                failures=types_of(failing),
                retry_on=types_of(not_now),
                retry=retry,
                deadline=deadline,
                when=when,
                pivot=pivot,
                escalate=escalate,
                handle=self._handle,
            )
            self._joins = self._parallel
            self.steps.append(step)
            self._handle((*replies, *failing, *not_now))
            return step

        return declare

    def _new_name(self, name: str, deadline: timedelta | None) -> str:
        """Return the name of a step, once it is clear that it may be declared here."""
        if self.find_step(name) is not None:
            raise ConfigurationError(f"The island {self.name!r} already has a step named {name!r}.")
        if self._parallel and deadline is None:
            raise ConfigurationError(
                f"The parallel step {name!r} needs a deadline: if another one of its group fails, the run can "
                "only be undone once this one has answered, or its time is over."
            )
        return name

    def _next_stage(self) -> int:
        last = self.steps[-1].stage if self.steps else -1
        return last if self._parallel and self._joins else last + 1

    @contextmanager
    def parallel(self) -> Generator[None, None, None]:
        """Begin the steps declared in the block together; the next one waits for all of them."""
        self._parallel, self._joins = True, False
        try:
            yield
        finally:
            self._parallel = self._joins = False

    _joins = False

    def starts_on(self, *events: type) -> Callable[[_B], _B]:
        """Start a run when one of these events arrives: the decorated ``def function(event)`` makes its state.

        It may return None: then this event is none of the island's business. One run in each saga; for several, or to
        start one from a handler of your own, call `start`.
        """

        def declare(function: _B) -> _B:
            async def begin(event: object, ctx: StepContext) -> None:
                state = function(event)
                if state is not None:
                    await self.start(ctx, state)

            self.started_by += types_of(events)
            self._inbox.on(*events, transaction=self._transaction)(begin)
            return function

        return declare

    def completes(self, function: _B) -> _B:
        """Publish what the decorated ``def function(state) -> Event`` returns when all steps are done."""
        self.completed, self.completes_with = function, event_type_of(sent_by(function))
        return function

    def fails(self, function: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        """Publish what the decorated ``def function(state, reason) -> Event`` returns when a failed run is undone."""
        self.failed, self.fails_with = function, event_type_of(sent_by(function, ("state", "reason")))
        return function

    def drawn(self) -> list[Step]:
        """Return the island as it looks in the choreography around it."""
        return steps_of(self)

    # --- at work ---

    async def start(self, ctx: StepContext, state: object, *, instance: str = "") -> str | None:
        """Start a run in the saga and transaction of a step; return its id.

        None: the saga is being rolled back, or has a run of this instance already; nothing was done.

        :param instance: tells several runs in one saga apart, for example the parcels of an order.
        """
        if not self.steps:
            raise ConfigurationError(f"The island {self.name!r} has no steps.")
        session, saga = ctx.session, ctx.saga
        if not await self._lock(session, saga):
            return None
        runs = self._runs(session)
        run = await runs.begin(
            saga,
            instance,
            self.dump(state),
            self.steps,
            cause=ctx.event.id,
            key=ctx.event.partitionkey or saga,
        )
        if run is None:
            return None
        await self.sagas.record(session, saga, self._undo, {"run": run.id}, step_event=ctx.event.id, key=run.key)
        await Coordinator(self, session, runs).started(run)
        return run.id

    async def _answer(self, payload: object, ctx: StepContext) -> None:
        session, type_ = ctx.session, ctx.event.type
        answered = await self._answered(ctx, type_)
        if answered is None:
            return
        step = self.step_named(answered.step)
        await self._lock(session, answered.saga)
        coordinator = Coordinator(self, session, self._runs(session))
        if answered.undo:
            if type_ in step.undone:
                await coordinator.replied(answered.run, step.name, payload, undo=True)
        elif type_ in step.replies:
            await coordinator.replied(answered.run, step.name, payload, undo=False)
        elif type_ in step.failures or type_ in step.retry_on:
            await coordinator.refused(answered.run, step.name, type_)

    async def _answered(self, ctx: StepContext, type_: str) -> Answered | None:
        """Return which command an event answers: the one that caused it, else the one its saga waits for."""
        runs = self._runs(ctx.session)
        cause = ctx.event.causationid
        found = await runs.answered(cause) if cause is not None else None
        if found is not None:
            return found
        # Caused by something else, for example by a person at a screen hours later.
        await self._lock(ctx.session, ctx.saga)
        candidates: list[Answered] = []
        unknown: list[str] = []
        for run in await runs.of_saga(ctx.saga):
            for row in await runs.steps(run):
                step = self.find_step(row.name)
                if row.state not in {"waiting", "rolling_back", "stuck"}:
                    continue
                if step is None:
                    unknown.append(row.name)
                    continue
                expected = step.undone if row.undo else (*step.replies, *step.failures, *step.retry_on)
                if type_ in expected:
                    candidates.append(Answered(run, ctx.saga, row.name, row.undo))
        if len(candidates) > 1:
            raise Reject(
                f"{len(candidates)} steps of the island {self.name!r} wait for {type_} in the saga {ctx.saga!r}, and "
                "the event does not name the command it answers as its cause. Publish it from the command's handler."
            )
        if not candidates and unknown:
            self.step_named(unknown[0])  # raises: it may be what this step waits for
        return candidates[0] if candidates else None

    async def _timed_out(self, timeout: StepTimedOut, ctx: StepContext) -> None:
        await self._lock(ctx.session, ctx.saga)
        await Coordinator(self, ctx.session, self._runs(ctx.session)).timed_out(timeout)

    async def _decided(self, decided: StepDecided, ctx: StepContext) -> None:
        await self._lock(ctx.session, ctx.saga)
        coordinator = Coordinator(self, ctx.session, self._runs(ctx.session))
        await coordinator.decided(decided.run, decided.step, decided.decision)

    async def _undo_run(self, ctx: CompensationContext, *, run: str) -> NotYet | None:
        """The ledger's compensation of a run: begins its undoing, and is done when that is."""
        runs = self._runs(ctx.session)
        found = await runs.find(run)
        if found is None:
            return None
        await Coordinator(self, ctx.session, runs).undo(found, f"the saga is rolled back: {ctx.reason}", by_saga=True)
        found = await runs.find(run)
        return None if found is None or found.state == "rolled_back" else NotYet(_ASK_AGAIN)

    # --- inside ---

    async def _lock(self, session: AsyncSession, saga: str) -> bool:
        """Lock the saga's row; False if the saga is being rolled back, or was."""
        await session.execute(self.sagas.ledger(session).ensure(saga))
        return await self.goes_on(session, saga)

    def _runs(self, session: AsyncSession) -> Runs:
        moments = kit_of(session.get_bind()).moments(self.sagas.clock)
        return Runs(self.sagas.tables.islands, session, moments, service=self.sagas.service, island=self.name)

    def _handle(self, classes: Iterable[type]) -> None:
        """Let the inbox handle answers, each class once however many steps expect it."""
        fresh = [cls for cls in dict.fromkeys(classes) if cls not in self._handled]
        self._handled.update(fresh)
        if fresh:
            self._inbox.on(*fresh, transaction=self._transaction)(self._answer)
