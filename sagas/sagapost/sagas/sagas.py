"""`Sagas`: a service's part in sagas, declared: what undoes its steps, and what starts a rollback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from sagapost.core.clock import Clock
from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.context import Context
from sagapost.inbox.declared.handlers import is_async, name_of
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.outcomes import Exhausted, LastResort
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.choreography.manifest import Step
from sagapost.sagas.compensations import CompensationFunction, declare
from sagapost.sagas.context import StepContext
from sagapost.sagas.deadlines import Deadline
from sagapost.sagas.declaration import StepDeclaration, type_names
from sagapost.sagas.events import RetryRequested, RollbackRequested
from sagapost.sagas.rollbacks import Rollbacks
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.tasks import CHOICES, Outcome, open_task

__all__ = ["Sagas"]

_F = TypeVar("_F", bound=CompensationFunction)
_H = TypeVar("_H", bound=Callable[..., Any])

# What is the library's own runs in transactions of these names: no answer of a user's handler can undo it.
_ROLLBACK = "saga rollback"
_PIVOT = "saga pivot"
_END = "saga end"


class DeclaredIslandStep(Protocol):
    """One step of an island, as its service knows it."""

    undo: Callable[[Any], Any] | None
    """What makes the command that undoes it."""


class DeclaredIsland(Protocol):
    """An orchestrated part, as its service knows it."""

    @property
    def name(self) -> str:
        """Its name within the service."""
        ...

    def find_step(self, name: str, /) -> DeclaredIslandStep | None:
        """Return a step; None if it is not declared."""
        ...

    def load(self, data: Any, /) -> Any:
        """Return a run's state as the user's class.

        :raises DecodingError: if what is recorded does not fit it.
        """
        ...

    def drawn(self) -> list[Step]:
        """Return its steps as they look in the choreography around it."""
        ...


class Sagas(Rollbacks):
    """A service's compensations and the events that make it roll back.

    :param service: the service's name; the same as its inbox's.
    :param outbox: what compensations and lifecycle events are published through.
    :param tables: where the ledger is kept; default: beside the outbox, in its MetaData, schema and prefix.
    :param starts: events the service publishes outside handlers, which begin a saga; for the map.
    :param ends: events after which a saga is over; for the map and the tracker.
    :param announce: also publish what happens to rollbacks (`sagapost.sagas.events`), for a tracker. Only where a
        tracker runs: events that no queue is bound for are held in the outbox.
    """

    def __init__(
        self,
        service: str,
        *,
        outbox: Outbox,
        tables: SagaTables | None = None,
        starts: Iterable[type | str] = (),
        ends: Iterable[type | str] = (),
        announce: bool = False,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(service, outbox=outbox, tables=tables, announce=announce, clock=clock)
        self.starts = tuple(starts)
        self.ends = tuple(ends)
        self._emitted: list[type | str] = [*self.starts, *self.ends]
        self.steps: dict[Callable[..., Any], StepDeclaration] = {}
        """What steps declare about themselves, by handler function."""
        self.rollback_events: tuple[str, ...] = ()
        """What makes this service roll back its part."""
        self.islands: list[DeclaredIsland] = []
        """The orchestrated parts of this service."""
        self._context: type[StepContext] = type("StepContext", (StepContext,), {"sagas": self, "__slots__": ()})

    @property
    def context(self) -> type[StepContext]:
        """The class to pass as ``Inbox(context=...)``, so that handlers get a `StepContext` of this service."""
        return self._context

    # --- declaring ---

    def compensation(self, *, emits: Iterable[type | str] = (), name: str | None = None) -> Callable[[_F], _F]:
        """Register the decorated ``async def function(ctx, **arguments)`` as a compensation.

        :param emits: events it publishes.
        :param name: what the ledger calls it; default: the function's name. It is recorded with every intent, so give
            one before renaming the function.
        :raises ConfigurationError: if the name is taken or the function cannot be one.
        """
        emitted = tuple(emits)

        def register(function: _F) -> _F:
            declaration = declare(function, name=name, emits=type_names(emitted))
            if declaration.name in self._compensations:
                raise ConfigurationError(
                    f"The service {self.service!r} already has a compensation named {declaration.name!r}."
                )
            self._compensations[declaration.name] = declaration
            self._names[function] = declaration.name
            self._emitted += emitted
            return function

        return register

    def step(
        self,
        *,
        emits: Iterable[type | str] = (),
        compensation: CompensationFunction | None = None,
        fails_with: Iterable[type | str] = (),
        undoes: Iterable[type | str] = (),
        deadlines: Iterable[Deadline[Any]] = (),
        cancels: Iterable[Deadline[Any]] = (),
        changes_nothing: bool = False,
        likely_to_fail: bool = False,
    ) -> Callable[[_H], _H]:
        """Say what a handler is in the saga, for the map, the lint and the tracker. Goes below `Inbox.on`.

        ::

            @inbox.on(OrderPlaced, emits=[PaymentTaken, PaymentDeclined])
            @sagas.step(compensation=refund_payment, fails_with=[PaymentDeclined], likely_to_fail=True)
            async def take_payment(event: OrderPlaced, ctx: StepContext) -> None: ...

        :param emits: classes of emitted events whose shape is to be on the map; `Inbox.on(emits=)` says which are.
        :param compensation: what undoes the step; the handler records it with `ctx.on_rollback`.
        :param fails_with: business failures, after which the saga is rolled back.
        :param undoes: events whose effect this handler undoes: it is part of a rollback.
        :param deadlines: what it sets with `ctx.deadline`.
        :param cancels: deadlines it takes back with `ctx.cancel_deadline`.
        :param changes_nothing: there is nothing to undo.
        :param likely_to_fail: business failures are common here.
        :raises ConfigurationError: where it is declared, if it is a plain `def` with a compensation or deadlines.
        """
        deadlines = tuple(deadlines)
        declaration = StepDeclaration(
            compensation=compensation,
            fails_with=tuple(fails_with),
            undoes=tuple(undoes),
            deadlines=deadlines,
            cancels=tuple(cancels),
            changes_nothing=changes_nothing,
            likely_to_fail=likely_to_fail,
        )
        emitted = [*emits, *declaration.fails_with, *(deadline.event for deadline in declaration.deadlines)]

        def describe(function: _H) -> _H:
            recorded = [what for what, given in (("compensation", compensation), ("deadlines", deadlines)) if given]
            if recorded and not is_async(function):
                raise ConfigurationError(
                    f"{name_of(function)} is a plain `def` and a step with {' and '.join(recorded)}. What a step "
                    "records goes through an asynchronous context: make it an `async def`."
                )
            self.steps[function] = declaration
            self._emitted += emitted
            return function

        return describe

    @property
    def declared_events(self) -> tuple[type | str, ...]:
        """Every event named in a declaration here."""
        return tuple(self._emitted)

    def rolls_back_on(self, inbox: Inbox, *events: type | str) -> None:
        """Roll this service's part back when one of these events of the saga arrives, or an operator asks for it.

        An operator's `RetryRequested` gives compensations that were given up another round of attempts. All of it runs
        in transactions of its own, whatever handlers of the same events answer.
        """

        async def start_rollback(_payload: object, ctx: StepContext) -> None:
            await ctx.roll_back(f"{ctx.event.type} from {ctx.event.source}")

        if events:
            self.rollback_events += type_names(events)
            inbox.on(*type_names(events), transaction=_ROLLBACK)(start_rollback)

        async def rollback_requested(payload: RollbackRequested, ctx: StepContext) -> None:
            await ctx.roll_back(f"{payload.reason} (asked for by {payload.by})")

        async def retry_requested(_payload: RetryRequested, ctx: StepContext) -> None:
            ledger = self.ledger(ctx.session)
            await ctx.session.execute(ledger.lock(ctx.saga))
            await ctx.session.execute(ledger.retry(ctx.saga))
            await ctx.session.execute(ledger.resume(ctx.saga))

        if not any(RollbackRequested in handler.accepts.values() for handler in inbox.handlers):
            inbox.on(RollbackRequested, transaction=_ROLLBACK)(rollback_requested)
            inbox.on(RetryRequested, transaction=_ROLLBACK)(retry_requested)

    def pivots_on(self, inbox: Inbox, *events: type | str) -> None:
        """From the arrival of one of these events on, this service does not roll the saga back by itself.

        For what another service does that cannot be undone: once the parcel is dispatched, payment is kept.
        """

        async def pass_pivot(_payload: object, ctx: StepContext) -> None:
            await ctx.pivot(f"{ctx.event.type} from {ctx.event.source}")

        inbox.on(*type_names(events), transaction=_PIVOT)(pass_pivot)

    def completes_on(self, inbox: Inbox, *events: type | str) -> None:
        """With the arrival of one of these events the saga has ended well here; see `StepContext.complete`.

        For events that only a saga publishes that nobody rolls back any more.
        """

        async def complete(_payload: object, ctx: StepContext) -> None:
            await ctx.complete()

        inbox.on(*type_names(events), transaction=_END)(complete)

    def escalation(
        self,
        name: str,
        *,
        title: str,
        outcomes: Mapping[str, Outcome] | Callable[[Any], Mapping[str, Outcome]] = CHOICES,
        details: Callable[[Any], Mapping[str, Any]] | None = None,
        due: timedelta | None = None,
    ) -> LastResort:
        """Return what `Inbox.on(on_exhausted=)` takes: when a step's tries are used up, a task asks a person.

        :param outcomes: what the person can choose, or a function of the event's payload that returns it.
        :param details: a function of the payload; what the person should know. The last error is added.
        """

        async def escalate(payload: Any, ctx: Context, exhausted: Exhausted) -> None:
            await open_task(
                self,
                ctx.session,
                ctx.event.correlationid or ctx.event.id,
                name,
                title=title,
                outcomes=outcomes(payload) if callable(outcomes) else outcomes,
                details={
                    **(details(payload) if details is not None else {}),
                    "error": exhausted.error,
                    "attempts": exhausted.attempts,
                },
                due=due,
                step=ctx,
            )

        return escalate

    def add_island(self, island: DeclaredIsland) -> None:
        """Note an orchestrated part; called by `Island`.

        :raises ConfigurationError: if the service has one of that name.
        """
        if any(each.name == island.name for each in self.islands):
            raise ConfigurationError(f"The service {self.service!r} already has an island named {island.name!r}.")
        self.islands.append(island)
