"""Which saga the current code runs for, carried by contextvars through calls, tasks and worker threads.

Inside a handler the inbox sets it; a web request sets it with `saga.start()`. Every `publish` reads it, so correlation
and causation need no argument, and the log filter reads it, so every record carries both ids.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sagapost.core.envelope import Event
from sagapost.core.ids import new_id

__all__ = ["SagaContext", "bind", "continue_from", "current"]


@dataclass(frozen=True, slots=True)
class SagaContext:
    """The saga in progress, and the event that is being handled for it."""

    correlationid: str
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    keys: str | None = None
    """Business keys for the events published in this context; see `sagapost.core.saga_keys`."""


_current: ContextVar[SagaContext | None] = ContextVar("sagapost_saga", default=None)


def current() -> SagaContext | None:
    """Return the context of the running code, or None outside any saga."""
    return _current.get()


@contextmanager
def bind(context: SagaContext | None) -> Generator[SagaContext | None, None, None]:
    """Make `context` the current one inside the block; None leaves the saga."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def continue_from(event: Event) -> SagaContext:
    """Return the context in which the handling of `event` runs: its saga, with the event as the cause.

    An event that names no saga starts one: its own id becomes the correlation id, so that everything it causes can
    still be tied together.
    """
    return SagaContext(
        correlationid=event.correlationid or event.id,
        causationid=event.id,
        # A foreign message may have them empty, which no event of ours may.
        traceparent=event.traceparent or None,
        tracestate=event.tracestate or None,
    )


def new_saga() -> SagaContext:
    """Return a context for a saga that starts now."""
    return SagaContext(correlationid=new_id())
