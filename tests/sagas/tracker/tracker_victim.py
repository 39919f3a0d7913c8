"""A tracker process for tests that kill it: consumes, applies a rule, relays. Arguments: database URL, broker URL."""

from __future__ import annotations

import sys
from datetime import timedelta

import anyio
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.outbox import Outbox
from sagapost.outbox.relay import Relay
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.tracker import (
    RequestRollback,
    Rule,
    SagaState,
    Tracker,
    TrackerConsumer,
    TrackerConsumerSettings,
    TrackerSettings,
    Watch,
    WatchSettings,
)
from tests.sagas.choreographies import healthy

RULE = Rule("undo-what-is-stuck", RequestRollback(), states=(SagaState.STUCK,))


async def main(database: str, broker_url: str) -> None:
    """Run until killed."""
    engine, broker = create_async_engine(database), RabbitMQBroker(broker_url)
    tracker = Tracker(engine, Choreography(healthy()), settings=TrackerSettings(keys=("order_id",)))
    consumer = TrackerConsumer(tracker, broker, settings=TrackerConsumerSettings(batch=7, prefetch=20))
    watch = Watch(
        tracker,
        [RULE],
        outbox=Outbox(source="https://tracker.example"),
        settings=WatchSettings(interval=timedelta(milliseconds=10), chunk=3),
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consumer.run)
        tasks.start_soon(watch.run)
        tasks.start_soon(Relay(PostgreSQLOutboxStore(database), broker).run)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
