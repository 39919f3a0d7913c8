"""Traces that go through the outbox: from the code that published, in the row and the message, to the handler.

    tracing = OpenTelemetryTracing()
    outbox = Outbox(source="https://orders.example", trace=tracing.current)
    inbox = Inbox("warehouse", outbox=outbox, around=tracing.process("warehouse"))

An event carries the trace context of where it was published (`traceparent`, `tracestate`), which the relay passes on
unchanged, as the semantic conventions for messaging ask. The time between the two is what outbox and broker took.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager

from sagapost.core.envelope import Event
from sagapost.core.errors import MissingExtraError
from sagapost.inbox.declared.outcomes import BusinessFailure, Retry, Snooze

try:
    from opentelemetry import context as otel_context
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as missing:
    raise MissingExtraError(module="opentelemetry-api", extra="otel", purpose="OpenTelemetry") from missing

__all__ = ["OpenTelemetryTracing"]

_ANSWERS = (BusinessFailure, Retry, Snooze)
"""What a handler raises to say something, not because it failed."""


class OpenTelemetryTracing:
    """Spans of handlers, and the trace context of published events.

    :param tracer_provider: default: the global one.
    :param system: `messaging.system` of the spans.
    :param continue_trace: whether a handler's span is a child of the publisher's, so that a saga is one trace; the
        publisher's span is linked in either case. Without it each handler begins a trace of its own.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        system: str = "rabbitmq",
        continue_trace: bool = True,
    ) -> None:
        self._tracer = trace.get_tracer("sagapost", tracer_provider=tracer_provider)
        self._system = system
        self._continue = continue_trace
        self._propagator = TraceContextTextMapPropagator()

    def current(self) -> tuple[str, str | None] | None:
        """Return `traceparent` and `tracestate` of the running span, or None outside any: for `Outbox(trace=)`."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        traceparent = carrier.get("traceparent")
        return None if traceparent is None else (traceparent, carrier.get("tracestate"))

    def process(self, consumer: str) -> Callable[[Event], AbstractContextManager[None]]:
        """Return what puts a span around each handler of an inbox: for `Inbox(around=)`."""

        def around(event: Event) -> AbstractContextManager[None]:
            return self._process(consumer, event)

        return around

    @contextmanager
    def _process(self, consumer: str, event: Event) -> Generator[None, None, None]:
        creation = self._creation(event)
        spans = trace.get_current_span(creation).get_span_context()
        with self._tracer.start_as_current_span(
            f"process {consumer}",
            context=creation if self._continue else otel_context.Context(),
            kind=trace.SpanKind.CONSUMER,
            attributes=self._attributes(consumer, event),
            links=[trace.Link(spans)] if spans.is_valid else [],
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except _ANSWERS as answer:
                span.set_attribute("sagapost.outcome", type(answer).__name__)
                raise
            except Exception as error:
                # No text of the error: it may quote what the message says.
                span.set_attribute("error.type", type(error).__qualname__)
                span.set_status(trace.StatusCode.ERROR)
                raise

    def _creation(self, event: Event) -> otel_context.Context:
        carrier = {"traceparent": event.traceparent or "", "tracestate": event.tracestate or ""}
        # From an empty context: whatever span happens to be active here has nothing to do with the message.
        return self._propagator.extract(carrier, context=otel_context.Context())

    def _attributes(self, consumer: str, event: Event) -> dict[str, str]:
        named = {
            "messaging.system": self._system,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": consumer,
            "messaging.consumer.group.name": consumer,
            "messaging.message.id": event.id,
            "messaging.message.conversation_id": event.correlationid,
            "cloudevents.event_id": event.id,
            "cloudevents.event_source": event.source,
            "cloudevents.event_type": event.type,
            "cloudevents.event_subject": event.subject,
        }
        return {name: value for name, value in named.items() if value is not None}
