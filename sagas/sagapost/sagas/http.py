"""A saga across a request: which one the caller means, and how to say it when calling somebody.

Headers: `saga-id` and `saga-cause` (the event being handled), percent-encoded; `traceparent` and `tracestate` of W3C
Trace Context. A caller that cannot set headers of its own may name the saga in W3C `baggage`, as the member `saga-id`.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, unquote

from sagapost.core.context import SagaContext, bind, current
from sagapost.core.ids import new_id
from sagapost.sagas.beginning import valid_id

__all__ = ["join_request", "request_headers"]

_SAGA, _CAUSE = "saga-id", "saga-cause"
# https://www.w3.org/TR/trace-context/: version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_TRACESTATE_BYTES = 512


@contextmanager
def join_request(headers: Mapping[str, str]) -> Generator[SagaContext, None, None]:
    """Run the block within the saga that a request's headers name; start one if they name none.

    What is published inside carries the saga, the caller's event as its cause, and the caller's trace. A trace context
    of the wrong form is left out, as its specification asks.

    Take it from callers you trust: whoever names a saga adds events to it.

    :param headers: names in any case.
    :raises ConfigurationError: if an id is over 255 bytes or cannot be printed; answer with status 400.
    """
    given = {name.lower(): value for name, value in headers.items()}
    saga, cause = unquote(given.get(_SAGA, "")) or _from_baggage(given.get("baggage", "")), given.get(_CAUSE)
    trace = given.get("traceparent", "").strip()
    traced = _TRACEPARENT.fullmatch(trace) is not None
    state = given.get("tracestate", "").strip() if traced else ""
    context = SagaContext(
        correlationid=valid_id(saga) if saga else new_id(),
        causationid=valid_id(unquote(cause)) if cause else None,
        traceparent=trace if traced else None,
        tracestate=state if state and state.isprintable() and len(state) <= _TRACESTATE_BYTES else None,
    )
    with bind(context):
        yield context


def request_headers() -> dict[str, str]:
    """Return the headers that name the running saga to a service that is called; none outside a saga."""
    context = current()
    if context is None:
        return {}
    headers = {
        _SAGA: quote(context.correlationid, safe=":/"),
        _CAUSE: quote(context.causationid, safe=":/") if context.causationid is not None else None,
        "traceparent": context.traceparent,
        "tracestate": context.tracestate,
    }
    return {name: value for name, value in headers.items() if value is not None}


def _from_baggage(baggage: str) -> str | None:
    for member in baggage.split(","):
        name, _, value = member.partition(";")[0].partition("=")
        if name.strip().lower() == _SAGA:
            return unquote(value.strip()) or None
    return None
