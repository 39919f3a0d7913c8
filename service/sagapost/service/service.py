"""`Service`: what the author of a service writes with. Declarative; it opens nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.clock import Clock
from sagapost.core.context import SagaContext, current
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError, ConflictError
from sagapost.core.foreign import ForeignMessages
from sagapost.inbox.declared.inbox import Inbox, UnknownPolicy
from sagapost.inbox.declared.outcomes import LastResort
from sagapost.outbox.aggregates import SessionSource
from sagapost.outbox.handles import AsyncHandle, SyncHandle
from sagapost.outbox.options import PublishOptions
from sagapost.outbox.outbox import DEFAULT_MAX_BYTES, Outbox
from sagapost.sagas.beginning import start
from sagapost.sagas.choreography.manifest import Manifest
from sagapost.sagas.compensations import NotYet
from sagapost.sagas.context import CompensationContext
from sagapost.sagas.manifests import manifest_of
from sagapost.sagas.sagas import Sagas
from sagapost.sagas.tasks import CHOICES, Outcome
from sagapost.service.options import HandlerOptions, Handles
from sagapost.service.signatures import check_deadlines, check_options, check_signature, require_deadlines
from sagapost.service.tables import ServiceTables

if TYPE_CHECKING:
    from sagapost.sagas.orchestration.island import Island

__all__ = ["Service"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
P = ParamSpec("P")
_F = TypeVar("_F", bound=Callable[Concatenate[CompensationContext, ...], Coroutine[Any, Any, NotYet | None]])


class Service:
    """A service: what it publishes, what it consumes, and its part in sagas, on one set of tables.

    ::

        warehouse = Service("warehouse", source="https://warehouse.example", metadata=Base.metadata)

        @warehouse.on(OrderPlaced, emits=[StockReserved])
        async def reserve(placed: OrderPlaced, ctx: StepContext) -> None: ...

    Every event is handled once per service: all its handlers run in one transaction, in the order in which they were
    declared, and either all of them took effect or none did.

    :param name: names the queue, the consumer and the service's rows in the tables; keep it for the life of the
        service.
    :param source: CloudEvents `source` of every event: a URI that names this service.
    :param metadata: your MetaData, so that `create_all` and Alembic see the tables; default: one of its own, or that
        of the service which it replaces.
    :param schema: database schema of the tables (PostgreSQL); default: the connection's search path.
    :param prefix: put before each table's name, where names would clash.
    :param ordered: handle events of one ordering key one after the other, in the order of the queue, also across
        several replicas of the service (of which one is active at a time).
    :param unknown: what happens to an event that no handler takes: it is parked as a dead letter, acknowledged
        (``"ignore"``) or refused (``"reject"``).
    :param foreign: how messages of other producers are read that are no CloudEvents; see `ForeignMessages`.
    :param starts: events it publishes outside handlers, which begin a saga; for the map.
    :param ends: events after which a saga is over; for the map and the tracker.
    :param announce: also publish what happens to rollbacks (`sagapost.sagas.events`), for a tracker. Only where a
        tracker runs: events that no queue is bound for are held in the outbox.
    :param replaces: a service of the same name that this one is deployed in the place of, on the same tables; for
        programs and tests that know both. A process runs one of them.
    :param max_bytes: largest encoded payload of an event.
    :param clock: stamps `time` on events, and is what deadlines are reckoned from.
    :param trace: returns `traceparent` and `tracestate` of the running code, or None; see `Outbox`.
    :param around: returns a context manager in which each call of a handler runs; see `Inbox`.
    :raises ConfigurationError: if name or source cannot be used, or the MetaData has a service of that name.
    """

    def __init__(
        self,
        name: str,
        *,
        source: str,
        metadata: MetaData | None = None,
        schema: str | None = None,
        prefix: str = "",
        ordered: bool = False,
        unknown: UnknownPolicy = "park",
        foreign: ForeignMessages | None = None,
        starts: Iterable[type | str] = (),
        ends: Iterable[type | str] = (),
        announce: bool = False,
        replaces: Service | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        clock: Clock | None = None,
        trace: Callable[[], tuple[str, str | None] | None] | None = None,
        around: Callable[[Event], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.name = name
        if metadata is None:
            metadata = replaces.metadata if replaces is not None else MetaData()
        self.metadata: MetaData = metadata
        self.tables = ServiceTables.for_service(
            name, metadata, schema=schema, prefix=prefix, replaces=replaces.name if replaces is not None else None
        )
        self.outbox = Outbox(source=source, tables=self.tables.outbox, max_bytes=max_bytes, clock=clock, trace=trace)
        self.sagas = Sagas(
            name,
            outbox=self.outbox,
            tables=self.tables.sagas,
            starts=starts,
            ends=ends,
            announce=announce,
            clock=clock,
        )
        self.inbox = Inbox(
            name,
            outbox=self.outbox,
            tables=self.tables.inbox,
            ordered=ordered,
            unknown=unknown,
            foreign=foreign,
            context=self.sagas.context,
            around=around,
        )

    def __repr__(self) -> str:
        return f"Service({self.name!r})"

    # --- consuming ---

    @overload
    def on(self, event: type[A], /, **options: Unpack[HandlerOptions]) -> Handles[A]: ...
    @overload
    def on(self, event: type[A], second: type[B], /, **options: Unpack[HandlerOptions]) -> Handles[A | B]: ...
    @overload
    def on(
        self, event: type[A], second: type[B], third: type[C], /, **options: Unpack[HandlerOptions]
    ) -> Handles[A | B | C]: ...
    @overload
    def on(
        self, event: type[A], second: type[B], third: type[C], fourth: type[D], /, **options: Unpack[HandlerOptions]
    ) -> Handles[A | B | C | D]: ...
    @overload
    def on(self, *types: str, payload: type[A], **options: Unpack[HandlerOptions]) -> Handles[A]: ...
    @overload
    def on(self, *events: type[Any] | str, **options: Unpack[HandlerOptions]) -> Handles[Any]: ...

    def on(self, *events: type | str, payload: type | None = None, **options: Unpack[HandlerOptions]) -> Handles[Any]:
        """Handle these events with the decorated function ``(event, ctx)``.

        An `async def` runs on the event loop with a `StepContext`; a `def` in a worker thread with a `SyncContext`.

        :param events: classes named with `@event`; or event types as text, exact or as a pattern in which ``*`` is one
            dot-separated word and ``#`` any number of them (matched with the topic the message was published under).
        :param payload: the class that data of events given as text is decoded as. Default: `dict` for exact types and
            `bytes`, the undecoded data, for patterns.
        :param options: see `HandlerOptions`.
        :raises ConfigurationError: if nothing is named, a class has no event type, the function does not fit its
            events, or an option means nothing.
        """
        check_options(options, HandlerOptions.__annotations__, where=f"{self.name}.on()")
        emits, fails_with = tuple(options.get("emits", ())), tuple(options.get("fails_with", ()))
        deadlines, cancels = tuple(options.get("deadlines", ())), tuple(options.get("cancels", ()))
        require_deadlines((*deadlines, *cancels), where=f"{self.name}.on()")
        rolls_back, pivots = options.get("rolls_back", False), options.get("pivots", False)
        completes = options.get("completes", False)
        handled = self.inbox.on(
            *events,
            payload=payload,
            topics=options.get("topics"),
            emits=(*emits, *fails_with),
            retry=options.get("retry"),
            errors=options.get("errors"),
            on_exhausted=options.get("on_exhausted"),
            transaction=options.get("transaction", ""),
        )
        described = self.sagas.step(
            emits=emits,
            compensation=options.get("compensation"),
            fails_with=fails_with,
            undoes=options.get("undoes", ()),
            deadlines=deadlines,
            cancels=cancels,
            changes_nothing=options.get("changes_nothing", False),
            likely_to_fail=options.get("likely_to_fail", False),
        )
        classes = [each for each in events if not isinstance(each, str)]

        def declare(function: Callable[..., Any], /) -> Callable[..., Any]:
            check_signature(function, classes)
            handled(described(function))
            if rolls_back:
                self.rolls_back_on(*events)
            if pivots:
                self.pivots_on(*events)
            if completes:
                self.completes_on(*events)
            return function

        return declare

    def upcast(self, old: type[A], *, to: type[B]) -> Callable[[Callable[[A], B]], Callable[[A], B]]:
        """Convert events of an older class with the decorated function ``(old) -> new``; see `Inbox.upcast`.

        :raises ConfigurationError: if `old` already has a conversion, or the chain would lead back to it.
        """
        return self.inbox.upcast(old, to=to)

    # --- undoing ---

    def compensation(self, *, emits: Iterable[type | str] = (), name: str | None = None) -> Callable[[_F], _F]:
        """Register the decorated ``async def function(ctx: CompensationContext, **arguments)`` as a compensation.

        :param emits: events it publishes.
        :param name: what the ledger calls it; default: the function's name. It is recorded with every intent, so give
            one before renaming the function.
        :raises ConfigurationError: if the name is taken or the function cannot be one.
        """
        self.sagas.rolls_back_on(self.inbox)  # what can be undone, an operator may ask for
        return self.sagas.compensation(emits=emits, name=name)

    def rolls_back_on(self, *events: type | str) -> None:
        """Undo this service's part when one of these events of the saga arrives; an operator may always ask for it."""
        self.sagas.rolls_back_on(self.inbox, *events)

    def pivots_on(self, *events: type | str) -> None:
        """From the arrival of one of these events on, this service does not roll the saga back by itself.

        For what another service does that cannot be undone: once the parcel is dispatched, payment is kept.
        """
        self.sagas.pivots_on(self.inbox, *events)

    def completes_on(self, *events: type | str) -> None:
        """With the arrival of one of these events the saga has ended well, and nothing here is undone any more.

        What ends it: its deadlines in this service; a rollback that is asked for later opens a task, and a person
        decides; an event that begins a saga under its id once more is a dead letter. For events that only a saga
        publishes that nobody rolls back any more. In a step, `StepContext.complete`.
        """
        self.sagas.completes_on(self.inbox, *events)

    def escalation(
        self,
        name: str,
        *,
        title: str,
        outcomes: Mapping[str, Outcome] | Callable[[Any], Mapping[str, Outcome]] = CHOICES,
        details: Callable[[Any], Mapping[str, Any]] | None = None,
        due: timedelta | None = None,
    ) -> LastResort:
        """Return what ``on_exhausted=`` takes: when a step's tries are used up, a task asks a person.

        :param name: what kind of decision it is.
        :param title: what is to be decided, in a sentence.
        :param outcomes: what the person can choose, or a function of the event's payload that returns it.
        :param details: a function of the payload; what the person should know. The last error is added.
        :param due: when the decision is late; only shown.
        """
        return self.sagas.escalation(name, title=title, outcomes=outcomes, details=details, due=due)

    def island(self, name: str, *, state: type) -> Island:
        """Begin an orchestrated part of this service: steps in an order that the service decides; see `Island`.

        :param name: of the island within the service; recorded with its runs.
        :param state: class of a run's state, as for event classes; commands are made from it.
        :raises ConfigurationError: if the name is taken.
        """
        from sagapost.sagas.orchestration.island import Island

        self.sagas.rolls_back_on(self.inbox)
        return Island(name, state=state, sagas=self.sagas, inbox=self.inbox)

    # --- publishing ---

    @overload
    def publish(self, handle: SyncHandle, event: object, /, **options: Unpack[PublishOptions]) -> Event: ...
    @overload
    def publish(
        self, handle: AsyncHandle, event: object, /, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, Event]: ...

    def publish(
        self, handle: SyncHandle | AsyncHandle, event: object, /, **options: Unpack[PublishOptions]
    ) -> Event | Coroutine[Any, Any, Event]:
        """Publish one event in the transaction that is open on `handle`; in a handler, use `ctx.publish`.

        Outside a saga the event begins one of its own; `start` gives several events one saga, and its keys.

        :param handle: the Session, Connection, AsyncSession or AsyncConnection of the transaction, or the
            connection of asyncpg, psycopg (synchronous) or Django.
        :param event: an instance of a class named with `@event`.
        :param options: see `PublishOptions`; ``key=`` is the ordering key.
        :raises NotInTransactionError: if no transaction ties the event to other changes.
        :raises PublishError: if the event cannot be published as it is (one subclass per reason); nothing was written.
        """
        return self.outbox.publish(handle, event, **options)

    def capture(self, sessions: SessionSource, /) -> None:
        """Publish what `Recorder` aggregates record, in the transaction of the session they belong to.

        :param sessions: a sessionmaker (also asynchronous or scoped), one session, or a subclass of Session.
        :raises TypeError: if it is none of these.
        """
        self.outbox.capture(sessions)

    def start(
        self, saga: str | None = None, *, keys: Mapping[str, object] | None = None
    ) -> AbstractContextManager[SagaContext]:
        """Run a block as the beginning of a saga: ``with orders.start(keys={"order": 4711}): ...``.

        Every event published inside carries its id.

        :param saga: the correlation id; default: a fresh UUIDv7.
        :param keys: business keys by which people look for the saga; read by the tracker.
        :raises ConfigurationError: if the id is empty or over 255 bytes.
        :raises InvalidEventError: if a key is empty or over 255 characters.
        """
        return start(saga, keys=keys)

    async def on_rollback(
        self,
        session: AsyncSession,
        compensation: Callable[Concatenate[CompensationContext, P], Awaitable[NotYet | None]],
        /,
        *_positional: P.args,
        **arguments: P.kwargs,
    ) -> bool:
        """Record, in the caller's transaction, how to undo what it does in the running saga; see `start`.

        For what begins a saga outside a handler; in one, use `ctx.on_rollback`, which says what the arguments are.
        Returns whether the saga goes on, as that does.

        :raises ConfigurationError: if no saga is running, the function is not a compensation of this service, or it
            cannot be called with the arguments.
        :raises ConflictError: if, outside a handler, the saga has been here before and is over.
        """
        running = current()
        if running is None:
            raise ConfigurationError(
                f"{self.name}.on_rollback() was called outside a saga: there would be nothing to roll back. "
                f"Call it, and publish, inside `with {self.name}.start():`."
            )
        saga = running.correlationid
        if running.causationid is None and not await self.sagas.goes_on(session, saga):
            raise ConflictError(
                f"The saga {saga!r} is over in the service {self.name!r}: it has completed, or was rolled back, and "
                "what is done in it now would be undone with it. Give each attempt an id of its own (the business's "
                f"number as a key: `{self.name}.start(keys=...)`)."
            )
        return await self.sagas.record(session, saga, compensation, arguments, step_event=running.causationid)

    # --- what is asked before it runs ---

    def check(self) -> None:
        """Refuse what declarations get wrong only together; called before the service runs or is rehearsed.

        :raises ConfigurationError: if a handler takes back a deadline that is not one of those that are set.
        """
        steps = self.sagas.steps.values()
        check_deadlines(
            (deadline for step in steps for deadline in step.deadlines),
            (deadline for step in steps for deadline in step.cancels),
            where=self.name,
        )

    @property
    def manifest(self) -> Manifest:
        """What this service declares, for the map and the lint."""
        return manifest_of(self.inbox, self.sagas)
