"""Starting a saga, or joining one, where no handler does it: a web request, a job, a test."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

from sagapost.core.context import SagaContext, bind, current
from sagapost.core.errors import ConfigurationError
from sagapost.core.ids import new_id
from sagapost.core.saga_keys import encode_keys

__all__ = ["join", "start"]

_MAX_BYTES = 255


@contextmanager
def start(saga: str | None = None, *, keys: Mapping[str, object] | None = None) -> Generator[SagaContext, None, None]:
    """Run the block as the beginning of a saga; every event published inside carries its id.

    ``with saga.start() as context: ...``

    Within a handler, the saga's first events name the handled event as their cause and are in its trace.

    :param saga: the correlation id; default: a fresh UUIDv7.
    :param keys: business keys by which people look for the saga, e.g. ``{"order": 4711}``; written on the events
        published in the block, and read by the tracker.
    :raises ConfigurationError: if the id is empty or over 255 bytes.
    :raises InvalidEventError: if a key is empty or over 255 characters.
    """
    context = _within(valid_id(saga) if saga is not None else new_id(), keys=encode_keys(keys) if keys else None)
    with bind(context):
        yield context


@contextmanager
def join(saga: str | None) -> Generator[SagaContext, None, None]:
    """Run the block within a saga that began elsewhere, as named by a request header; start one if none is named.

    Within a handler the cause is the event that is handled, whichever saga is named.

    :raises ConfigurationError: if the id is over 255 bytes.
    """
    if not saga:
        with start() as context:
            yield context
        return
    running = current()
    context = running if running is not None and running.correlationid == saga else _within(valid_id(saga))
    with bind(context):
        yield context


def _within(saga: str, *, keys: str | None = None) -> SagaContext:
    """Return the context of a saga; one that begins in a handler is caused by what is handled, and in its trace."""
    running = current()
    if running is None:
        return SagaContext(saga, keys=keys)
    return SagaContext(saga, running.causationid, running.traceparent, running.tracestate, keys)


def valid_id(saga: str) -> str:
    """Return the id of a saga.

    :raises ConfigurationError: if it is empty, over 255 bytes or cannot be printed.
    """
    if not saga.isprintable() or not 0 < len(saga.encode()) <= _MAX_BYTES:
        raise ConfigurationError(
            f"A saga's id has 1 to {_MAX_BYTES} printable bytes; this one has {len(saga.encode())}."
        )
    return saga
