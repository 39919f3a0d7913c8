"""One tracker as a process of its own, for `benchmarks.tracker`: folds an order flow and reports its rate as JSON.

Arguments: fold | consume, database URL, broker URL, number of sagas.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
import msgspec
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Outgoing
from sagapost.core.envelope import Event
from sagapost.core.ids import new_id
from sagapost.core.observer import Observation
from sagapost.sagas.choreography import Choreography, Compensation, DeclaredDeadline, Manifest, Step
from sagapost.sagas.tracker import Tracker, TrackerConsumer, TrackerSettings
from sagapost.sagas.tracker.observations import Folded

BATCH = 1_000
AT_ONCE = 400
"""Sagas that are in progress at the same time."""

FLOW = (
    ("orders", "order-placed"),
    ("payment", "payment-taken"),
    ("warehouse", "goods-dispatched"),
    ("orders", "order-completed"),
)


def choreography() -> Choreography:
    """Three services, with a compensation and a deadline."""
    overdue = DeclaredDeadline(name="fulfil", event="order-overdue", after_seconds=3600)
    take = Step(
        name="take_payment",
        handles=("order-placed",),
        emits=("payment-taken",),
        compensation=Compensation(name="refund", emits=("payment-refunded",)),
    )
    return Choreography(
        (
            Manifest(
                service="orders",
                source="https://orders.example",
                starts=("order-placed",),
                ends=("order-completed",),
                steps=(
                    Step(name="watch", handles=("order-placed",), sets=(overdue,), changes_nothing=True),
                    Step(
                        name="complete", handles=("goods-dispatched",), emits=("order-completed",), cancels=("fulfil",)
                    ),
                ),
            ),
            Manifest(service="payment", source="https://payment.example", steps=(take,)),
            Manifest(
                service="warehouse",
                source="https://warehouse.example",
                steps=(Step(name="dispatch", handles=("payment-taken",), emits=("goods-dispatched",)),),
            ),
        )
    )


def order_flow(sagas: int, at_once: int) -> list[Event]:
    """Return the events of so many sagas, in the order in which they would happen."""
    began = datetime.now(UTC)
    events: list[Event] = []
    for start in range(0, sagas, at_once):
        causes: dict[int, str] = {}
        for place, (service, type_) in enumerate(FLOW):
            for n in range(start, min(start + at_once, sagas)):
                event = Event(
                    id=new_id(),
                    source=f"https://{service}.example",
                    type=type_,
                    time=began + timedelta(milliseconds=n + 50 * place),
                    data=msgspec.json.encode({"order_id": str(n), "padding": "x" * 470}),
                    correlationid=f"order-{n}",
                    causationid=causes.get(n),
                    partitionkey=f"order-{n}",
                )
                causes[n] = event.id
                events.append(event)
    return events


class Meter:
    """Counts what a consumer folds; times from the first batch to the last."""

    def __init__(self, events: int) -> None:
        self._left = events
        self._first = 0
        self._began = 0.0
        self.rate = 0.0
        self.done = anyio.Event()
        self._events = events

    def notify(self, event: Observation, /) -> None:
        """Take note."""
        if not isinstance(event, Folded):
            return
        now = time.perf_counter()
        if not self._began:
            # The first batch includes the start of the connection; counted from its end.
            self._began, self._first = now, event.events
        self._left -= event.events
        if self._left <= 0:
            self.rate = (self._events - self._first) / (now - self._began)
            self.done.set()


async def fold(tracker: Tracker, events: Sequence[Event]) -> float:
    """Fold in batches; return events per second."""
    await tracker.fold(events[:BATCH])
    began = time.perf_counter()
    for start in range(BATCH, len(events), BATCH):
        await tracker.fold(events[start : start + BATCH])
    return (len(events) - BATCH) / (time.perf_counter() - began)


async def consume(tracker: Tracker, events: Sequence[Event], broker_url: str) -> float:
    """Fill the queue, then consume it; return events per second."""
    # An exchange of its own: the queue takes everything, and the relay of the same run publishes to the other.
    broker, meter = RabbitMQBroker(broker_url, exchange="tracked", queue_type="classic"), Meter(len(events))
    consumer = TrackerConsumer(tracker, broker, observer=meter)
    await broker.declare(consumer.queue)
    async with broker.publisher() as publisher:
        for start in range(0, len(events), BATCH):
            sent = await publisher.send([Outgoing(event, event.type) for event in events[start : start + BATCH]])
            await sent.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        await meter.done.wait()
        consumer.stop()
    return meter.rate


async def main(kind: str, database: str, broker_url: str, sagas: str) -> None:
    """Run one kind, and say its rate."""
    engine = create_async_engine(database)
    tracker = Tracker(engine, choreography(), settings=TrackerSettings(keys=("order_id",)))
    await tracker.install()
    events = order_flow(int(sagas), AT_ONCE)
    rate = await (fold(tracker, events) if kind == "fold" else consume(tracker, events, broker_url))
    await engine.dispose()
    sys.stdout.write(json.dumps({"rate": rate}) + "\n")


if __name__ == "__main__":
    arguments = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
    try:
        import uvloop
    except ModuleNotFoundError:
        anyio.run(main, *arguments)
    else:
        anyio.run(main, *arguments, backend_options={"loop_factory": uvloop.new_event_loop})
