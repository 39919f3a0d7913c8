"""Metrics of relays, consumers and compensators, from what they tell their observers.

Names that the semantic conventions for messaging have are theirs; the others begin with ``sagapost.``. No attribute
has values without bound: event types yes, keys and ids no.
"""

from __future__ import annotations

from collections.abc import Mapping

from sagapost.core.errors import MissingExtraError
from sagapost.core.life import ServerLost
from sagapost.core.observer import Observation
from sagapost.core.outbox_store import OutboxBacklog
from sagapost.inbox.declared import observations as inbox
from sagapost.outbox.relay import observations as relay
from sagapost.sagas import observations as sagas

try:
    from opentelemetry import metrics
except ModuleNotFoundError as missing:
    raise MissingExtraError(module="opentelemetry-api", extra="otel", purpose="OpenTelemetry") from missing

__all__ = ["OpenTelemetryMetrics"]


class OpenTelemetryMetrics:
    """An observer that counts and times; give it to relays, consumers and compensators with others (`Observers`).

    :param meter_provider: default: the global one.
    :param system: `messaging.system` of the figures.
    """

    def __init__(self, meter_provider: metrics.MeterProvider | None = None, *, system: str = "rabbitmq") -> None:
        meter = metrics.get_meter("sagapost", meter_provider=meter_provider)
        self._system = {"messaging.system": system}
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Confirmed and routed")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Received")
        self._process = meter.create_histogram("messaging.process.duration", "s", "From begin to commit")
        self._lag = meter.create_histogram("sagapost.inbox.lag", "s", "From the event's time to its commit")
        self._settled = meter.create_counter("sagapost.relay.settled", "{event}", "Published and deleted")
        self._moved = meter.create_counter("sagapost.relay.moved", "{event}", "Scheduled events that became due")
        self._retries = meter.create_counter("sagapost.relay.retries", "{event}", "Refusals that are tried again")
        self._buried = meter.create_counter("sagapost.relay.dead", "{event}", "Events that became dead letters")
        self._missed = meter.create_counter("sagapost.relay.missed", "{event}", "Found by a sweep only")
        self._overtaken = meter.create_counter("sagapost.relay.overtaken", "{event}", "Confirmed out of order")
        self._partitions = _Gauge(meter, "sagapost.relay.partitions", "{partition}", "Owned now")
        self._paused = _Gauge(meter, "sagapost.relay.paused", "1", "1 while nothing new is published, by cause")
        self._lost = meter.create_counter("sagapost.connections.lost", "{connection}", "Failed or ended, by server")
        self._handled = meter.create_counter("sagapost.inbox.handled", "{event}", "Handled and committed")
        self._duplicates = meter.create_counter("sagapost.inbox.duplicates", "{event}", "Known already")
        self._failed = meter.create_counter("sagapost.inbox.failures", "{event}", "Tries that failed")
        self._parked = meter.create_counter("sagapost.inbox.parked", "{event}", "Parked, by state and reason")
        self._undone = meter.create_counter("sagapost.saga.compensations", "{compensation}", "Tries, by outcome")
        self._rolled_back = meter.create_counter("sagapost.saga.rolled_back", "{saga}", "Undone whole in a service")
        self._pending = _Gauge(meter, "sagapost.outbox.pending", "{event}", "Committed and not yet published")
        self._age = _Gauge(meter, "sagapost.outbox.age", "s", "Age of the oldest event not yet published")
        self._held = _Gauge(meter, "sagapost.outbox.held", "{event}", "Refused, tried again")
        self._dead = _Gauge(meter, "sagapost.outbox.dead", "{event}", "Dead letters")
        self._scheduled = _Gauge(meter, "sagapost.outbox.scheduled", "{event}", "Not due yet")

    def notify(self, event: Observation, /) -> None:
        """Count it."""
        if isinstance(event, relay.Relayed):
            self._relay(event)
        elif isinstance(event, inbox.Consuming):
            self._inbox(event)
        elif isinstance(event, sagas.SagaObservation):
            self._saga(event)
        elif isinstance(event, ServerLost):
            self._lost.add(1, {"sagapost.server": event.server, "sagapost.part": event.part})

    def backlog(self, found: OutboxBacklog) -> None:
        """Take in how far behind the outbox is; see `OutboxStore.backlog`."""
        self._pending.set(found.pending)
        self._age.set(0.0 if found.oldest_age is None else found.oldest_age.total_seconds())
        self._held.set(found.held)
        self._dead.set(found.dead)
        self._scheduled.set(found.scheduled)

    def _relay(self, event: relay.Relayed) -> None:
        match event:
            case relay.Published(rows=rows):
                self._sent.add(rows, {**self._system, "messaging.operation.name": "publish"})
            case relay.Settled(rows=rows):
                self._settled.add(rows)
            case relay.Moved(rows=rows):
                self._moved.add(rows)
            case relay.Held(event_type=type_):
                self._retries.add(1, {"cloudevents.event_type": type_})
            case relay.Buried(event_type=type_, policy=policy):
                self._buried.add(1, {"cloudevents.event_type": type_, "sagapost.policy": policy})
            case relay.Overtaken():
                self._overtaken.add(1)
            case relay.Missed(rows=rows):
                self._missed.add(rows)
            case relay.LeasesChanged(owned=owned):
                self._partitions.set(len(owned))
            case relay.Blocked(blocked=blocked):
                self._paused.set(int(blocked), {"sagapost.cause": "alarm"})
            case relay.Saturated(saturated=saturated):
                self._paused.set(int(saturated), {"sagapost.cause": "held keys"})
            case _:
                pass

    def _inbox(self, event: inbox.Consuming) -> None:
        consumer = {**self._system, "messaging.destination.name": event.consumer}
        match event:
            case inbox.Received():
                self._consumed.add(1, consumer)
            case inbox.Handled():
                self._count_handled(consumer, {event.event_type: 1}, event.seconds, event.lag_seconds)
            case inbox.GroupHandled():
                self._count_handled(consumer, event.types, event.seconds, event.lag_seconds)
                self._duplicates.add(event.duplicates, consumer)
            case inbox.Duplicate():
                self._duplicates.add(1, consumer)
            case inbox.HandlerFailed(event_type=type_):
                self._failed.add(1, {**consumer, "cloudevents.event_type": type_})
            case inbox.Parked(state=state, reason=reason):
                self._parked.add(1, {**consumer, "sagapost.state": state, "sagapost.reason": reason})
            case _:
                pass

    def _saga(self, event: sagas.SagaObservation) -> None:
        service = {"sagapost.service": event.service}
        match event:
            case sagas.Compensated(compensation=name):
                self._undone.add(1, {**service, "sagapost.compensation": name, "sagapost.outcome": "done"})
            case sagas.CompensationFailed(compensation=name):
                self._undone.add(1, {**service, "sagapost.compensation": name, "sagapost.outcome": "failed"})
            case sagas.SagaStuck(compensation=name):
                self._undone.add(1, {**service, "sagapost.compensation": name, "sagapost.outcome": "stuck"})
            case sagas.SagaRolledBack():
                self._rolled_back.add(1, service)
            case _:
                pass

    def _count_handled(self, consumer: dict[str, str], types: Mapping[str, int], seconds: float, lag: float) -> None:
        for type_, count in types.items():
            self._handled.add(count, {**consumer, "cloudevents.event_type": type_})
        self._process.record(seconds, {**consumer, "messaging.operation.name": "process"})
        self._lag.record(max(lag, 0.0), consumer)


class _Gauge:
    """A figure that keeps its value until it gets another, and is given at every collection.

    `create_gauge` will not do: in the SDKs before 1.45 it is given at the first collection after it was set, and is
    missing from all that follow.
    """

    def __init__(self, meter: metrics.Meter, name: str, unit: str, description: str) -> None:
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        meter.create_observable_gauge(name, [self._observe], unit, description)

    def set(self, value: float, attributes: Mapping[str, str] | None = None) -> None:
        """Take in the value for these attributes."""
        self._values[tuple(sorted((attributes or {}).items()))] = value

    def _observe(self, _options: metrics.CallbackOptions) -> list[metrics.Observation]:
        # In the exporter's thread: one look at all of them.
        return [metrics.Observation(value, dict(attributes)) for attributes, value in list(self._values.items())]
