"""What `Service.on` takes beside the events, and the type of what it returns."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar, overload

from sagapost.inbox.declared.context import SyncContext
from sagapost.inbox.declared.outcomes import LastResort
from sagapost.inbox.declared.settings import RetryPolicy
from sagapost.sagas.compensations import CompensationFunction
from sagapost.sagas.context import StepContext
from sagapost.sagas.deadlines import Deadline

__all__ = ["AsyncHandler", "HandlerOptions", "Handles", "SyncHandler"]

E = TypeVar("E")

AsyncHandler: TypeAlias = Callable[[E, StepContext], Coroutine[Any, Any, None]]
"""``async def handler(event: OrderPlaced, ctx: StepContext) -> None``; run on the event loop."""

SyncHandler: TypeAlias = Callable[[E, SyncContext], None]
"""``def handler(event: OrderPlaced, ctx: SyncContext) -> None``; run in a worker thread."""


class HandlerOptions(TypedDict, total=False):
    """The keyword arguments of `Service.on`."""

    topics: Iterable[str] | None
    """What the queue is bound to. Default: the event types, which are what events are published under."""
    emits: Iterable[type | str]
    """Events the handler may publish when all goes well; for the map, the lint and the rehearsal."""
    fails_with: Iterable[type | str]
    """Business failures it may publish in their place, after which the saga is rolled back."""
    compensation: CompensationFunction | None
    """What undoes the step, made with `Service.compensation`; the handler records it with `ctx.on_rollback`."""
    undoes: Iterable[type | str]
    """Events whose effect this handler undoes: it is part of a rollback."""
    rolls_back: bool
    """Whether this service undoes its part of the saga when the event arrives, in a transaction of its own."""
    pivots: bool
    """Whether the event is the point of no return: from then on this service does not roll the saga back by itself."""
    completes: bool
    """Whether the saga has ended well with the event: nothing of it is undone any more; see `Service.completes_on`."""
    deadlines: Iterable[Deadline[Any]]
    """Deadlines it sets with `ctx.deadline`."""
    cancels: Iterable[Deadline[Any]]
    """Deadlines it takes back with `ctx.cancel_deadline`."""
    changes_nothing: bool
    """Whether there is nothing to undo."""
    likely_to_fail: bool
    """Whether business failures are common here."""
    retry: RetryPolicy | None
    """How technical failures are retried. Default: the consumer's policy."""
    errors: Mapping[type[Exception], RetryPolicy | Literal["reject"]] | None
    """Exceptions with a policy of their own, or ``"reject"``: a dead letter at once."""
    on_exhausted: LastResort | None
    """``async def last_resort(event, ctx, exhausted)``, or what `Service.escalation` returns: run in the message's
    transaction when its tries are used up or the handler rejected it. The message is handled with what this does, and
    is no dead letter. If it fails too, the message is a dead letter after all."""
    transaction: str
    """A name: the handler shares a transaction, and so its fate, only with handlers of the same name; see `Inbox.on`.
    Default: with all handlers of the event that have no name."""


class Handles(Protocol[E]):
    """What `Service.on` returns: a decorator for functions that fit the event, `async def` or `def`."""

    @overload
    def __call__(self, function: AsyncHandler[E], /) -> AsyncHandler[E]: ...
    @overload
    def __call__(self, function: SyncHandler[E], /) -> SyncHandler[E]: ...
