"""`Inbox`: what a service consumes, and the handlers it runs. Declarative; it opens nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeAlias, TypeVar

from sagapost.core.broker import Queue
from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.core.foreign import ForeignMessages
from sagapost.core.naming import event_type_of
from sagapost.core.schema import tables_beside
from sagapost.inbox.declared.context import Context, SyncContext
from sagapost.inbox.declared.handlers import (
    Call,
    FailureRule,
    Handler,
    HandlerFunction,
    Unit,
    Upcaster,
    is_async,
    name_of,
    topic_regex,
)
from sagapost.inbox.declared.outcomes import LastResort
from sagapost.inbox.declared.settings import RetryPolicy
from sagapost.inbox.declared.tables import InboxTables
from sagapost.outbox import Outbox

__all__ = ["Inbox", "UnknownPolicy"]

UnknownPolicy: TypeAlias = Literal["park", "ignore", "reject"]
"""What happens to an event that no handler takes.

`park`: it becomes a dead letter that an operator sees. `ignore`: it is acknowledged. `reject`: it is handed back to
the broker as refused, which dead-letters it there.
"""

_F = TypeVar("_F", bound=HandlerFunction)
_U = TypeVar("_U", bound=Callable[[Any], Any])
_NAME_BYTES = 255


class Inbox:
    """The consuming side of a service: one name, which is one queue and one dedup space.

    Every event is handled once per inbox: its handlers here run in one transaction, in the order in which they were
    declared, and either all of them took effect or none did; an answer of one (`BusinessFailure`, `Retry`, `Reject`,
    ...) undoes them all. Handlers with `on(transaction=)` have a transaction and a fate of their own.

    :param name: names the queue and the consumer in the tables; keep it for the life of the service.
    :param outbox: what `ctx.publish` writes to; needed only if handlers publish.
    :param tables: where the inbox keeps its records; default: beside those of the outbox, in its MetaData, schema and
        prefix; without an outbox in a MetaData of their own.
    :param ordered: handle events of one ordering key one after the other, in the order of the queue, also across
        several replicas of the service (of which one is active at a time).
    :param unknown: what happens to an event that no handler takes.
    :param foreign: how messages of other producers are read that are no CloudEvents; default: as the broker is set up
        to (`SAGAPOST_FOREIGN_WITHOUT_ID`).
    :param context: class of the context of `async def` handlers.
    :param sync_context: class of the context of `def` handlers.
    :param around: returns a context manager in which each call of a handler runs, inside the message's transaction and
        in the handler's own context variables; for tracing. It must be quick, and must not swallow exceptions.
    :raises ConfigurationError: if the name is empty or over 255 bytes.
    """

    def __init__(
        self,
        name: str,
        *,
        outbox: Outbox | None = None,
        tables: InboxTables | None = None,
        ordered: bool = False,
        unknown: UnknownPolicy = "park",
        foreign: ForeignMessages | None = None,
        context: type[Context] = Context,
        sync_context: type[SyncContext] = SyncContext,
        around: Callable[[Event], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if not name.isprintable() or not 0 < len(name.encode()) <= _NAME_BYTES:
            raise ConfigurationError(f"Inbox(name) has 1 to {_NAME_BYTES} printable bytes, not {name!r}.")
        self.name = name
        self.outbox = outbox
        if tables is None:
            tables = InboxTables() if outbox is None else tables_beside(InboxTables, outbox.tables)
        self.tables = tables
        self.ordered = ordered
        self.unknown: UnknownPolicy = unknown
        self.foreign = foreign
        self.context = context
        self.sync_context = sync_context
        self.around = around
        self._handlers: list[Handler] = []
        self._upcasters: dict[str, Upcaster] = {}
        self._units: dict[tuple[str, str], tuple[Unit, ...]] = {}
        self._patterned = False

    # --- declaring ---

    def on(
        self,
        *events: type | str,
        payload: type | None = None,
        topics: Iterable[str] | None = None,
        emits: Iterable[type | str] = (),
        retry: RetryPolicy | None = None,
        errors: Mapping[type[Exception], RetryPolicy | Literal["reject"]] | None = None,
        on_exhausted: LastResort | None = None,
        transaction: str = "",
    ) -> Callable[[_F], _F]:
        """Handle these events with the decorated function ``(event, ctx)``.

        An `async def` runs on the event loop with a `Context`; a `def` in a worker thread with a `SyncContext`.

        :param events: classes named with `@event`; or event types as text, exact or as a pattern in which ``*`` is one
            dot-separated word and ``#`` any number of them (matched with the topic the message was published under).
        :param payload: the class that data of events given as text is decoded as. Default: `dict` for exact types and
            `bytes`, the undecoded data, for patterns.
        :param topics: what the queue is bound to. Default: the event types, which are what events are published under.
        :param emits: events the handler may publish, `BusinessFailure`s included; for the map of the saga.
        :param retry: how technical failures are retried; default: the consumer's policy.
        :param errors: exceptions with a policy of their own, or ``"reject"``: a dead letter at once.
        :param on_exhausted: ``async def last_resort(event, ctx, exhausted)``, run in the message's transaction when
            its tries are used up or the handler rejected it: the message is handled with what this does, and is no
            dead letter. If it fails too, the message is a dead letter after all.
        :param transaction: a name: the handler shares a transaction only with handlers of the same name, and is tried,
            parked and redriven apart from the others. Keep the name: what was handled and parked is known by it. In
            an ordered inbox it gets its events in order, but what is parked of it neither holds others back nor waits
            for them. Default: the transaction of all handlers without a name.
        :raises ConfigurationError: if nothing is named, a class has no event type, or the function cannot be called.
        """
        accepts, patterns = _types_and_patterns(events, payload)
        rules = tuple(
            FailureRule(exception, None if policy == "reject" else policy)
            for exception, policy in (errors or {}).items()
        )

        def declare(function: _F) -> _F:
            self._add(
                Handler(
                    function=function,
                    name=name_of(function),
                    asynchronous=is_async(function),
                    accepts=accepts,
                    patterns=patterns,
                    topics=frozenset(topics) if topics is not None else frozenset({*accepts, *patterns}),
                    emits=frozenset(item if isinstance(item, str) else event_type_of(item) for item in emits),
                    retry=retry,
                    rules=rules,
                    on_exhausted=on_exhausted,
                    transaction=transaction,
                )
            )
            return function

        return declare

    def upcast(self, old: type, *, to: type) -> Callable[[_U], _U]:
        """Convert events of an older class with the decorated function ``(old) -> new``.

        Handlers of the new class then also get the old events; a handler of the old class keeps getting them as they
        are. Conversions chain. The function must be pure: it runs again on every retry.

        :raises ConfigurationError: if `old` already has a conversion, or the chain would lead back to it.
        """
        upcaster_types = event_type_of(old), event_type_of(to)

        def declare(function: _U) -> _U:
            from_type, to_type = upcaster_types
            if from_type in self._upcasters:
                raise ConfigurationError(f"Inbox {self.name!r} already converts events of type {from_type!r}.")
            step: str | None = to_type
            while step is not None:
                if step == from_type:
                    raise ConfigurationError(f"The conversion {from_type!r} -> {to_type!r} leads back to itself.")
                following = self._upcasters.get(step)
                step = following.to_type if following is not None else None
            self._upcasters[from_type] = Upcaster(from_type, old, to_type, function)
            self._units.clear()
            return function

        return declare

    def _add(self, handler: Handler) -> None:
        self._handlers.append(handler)
        self._patterned = self._patterned or bool(handler.patterns)
        self._units.clear()

    # --- asked by the consumer, and by the map of the saga ---

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """What was declared, in order."""
        return tuple(self._handlers)

    @property
    def upcasters(self) -> tuple[Upcaster, ...]:
        """The declared conversions."""
        return tuple(self._upcasters.values())

    @property
    def queue(self) -> Queue:
        """The queue this inbox consumes from, with its bindings."""
        topics = {topic for handler in self._handlers for topic in handler.topics}
        return Queue(self.name, frozenset(topics | self._converted), ordered=self.ordered, foreign=self.foreign)

    @property
    def takes(self) -> frozenset[str]:
        """The event types that a handler takes, converted or as they are; without those of patterns."""
        return frozenset(self._accepted | self._converted)

    @property
    def _accepted(self) -> set[str]:
        """The event types that a handler takes as they are."""
        return {type_ for handler in self._handlers for type_ in handler.accepts}

    @property
    def _converted(self) -> set[str]:
        """The event types that are converted into one that a handler takes."""
        wanted = self._accepted
        return {each.from_type for each in self._upcasters.values() if self._leads_to(each, wanted)}

    def calls(self, event_type: str, topic: str) -> tuple[Call, ...]:
        """Return what is called for an event, in whichever transaction; empty if no handler takes it."""
        return tuple(call for unit in self.units(event_type, topic) for call in unit.calls)

    def units(self, event_type: str, topic: str) -> tuple[Unit, ...]:
        """Return what is called for an event by transaction, each in order; empty if no handler takes it."""
        # Topics matter only to patterns; without any, one entry per type is kept.
        cached = self._units.get((event_type, topic if self._patterned else ""))
        if cached is None:
            shared: dict[str, list[Call]] = {}
            for call in self._find_calls(event_type, topic):
                shared.setdefault(call.handler.transaction, []).append(call)
            cached = tuple(Unit(transaction, tuple(calls)) for transaction, calls in shared.items())
            if cached:
                # Unknown types are not kept: other producers could send any number of them.
                self._units[event_type, topic if self._patterned else ""] = cached
        return cached

    def _find_calls(self, event_type: str, topic: str) -> tuple[Call, ...]:
        chain: list[Upcaster] = []
        calls: dict[int, Call] = {}
        type_: str | None = event_type
        while type_ is not None:
            for index, handler in enumerate(self._handlers):
                payload = handler.accepts.get(type_)
                if payload is not None and index not in calls:
                    calls[index] = Call(handler, chain[0].from_class if chain else payload, tuple(chain))
            step = self._upcasters.get(type_)
            if step is not None:
                chain.append(step)
            type_ = step.to_type if step is not None else None
        for index, handler in enumerate(self._handlers):
            for pattern, payload in handler.patterns.items():
                if index not in calls and topic_regex(pattern).fullmatch(topic):
                    calls[index] = Call(handler, payload)
        return tuple(calls[index] for index in sorted(calls))

    def _leads_to(self, upcaster: Upcaster, wanted: set[str]) -> bool:
        step: Upcaster | None = upcaster
        while step is not None:
            if step.to_type in wanted:
                return True
            step = self._upcasters.get(step.to_type)
        return False


def is_pattern(topic: str) -> bool:
    """Return whether a topic has wildcards: words that are `*` or `#`."""
    return any(word in {"*", "#"} for word in topic.split("."))


def _types_and_patterns(events: Iterable[type | str], payload: type | None) -> tuple[dict[str, type], dict[str, type]]:
    """Return what the data of each event type, and of what matches each pattern, is decoded as."""
    accepts: dict[str, type] = {}
    patterns: dict[str, type] = {}
    for item in events:
        if not isinstance(item, str):
            accepts[event_type_of(item)] = item
        elif is_pattern(item):
            patterns[item] = payload if payload is not None else bytes
        elif item:
            accepts[item] = payload if payload is not None else dict
    if not accepts and not patterns:
        raise ConfigurationError(
            "Inbox.on() needs an event class or an event type, for example @inbox.on(OrderPlaced)."
        )
    return accepts, patterns
