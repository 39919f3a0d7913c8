"""What others put into the queue that no handler can take."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import aiormq

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed, Outgoing
from sagapost.core.envelope import Event
from sagapost.core.ids import new_id
from tests.chaos.writer import TYPE

__all__ = ["KINDS", "send_strange_messages"]

KINDS: tuple[str, ...] = ("undecodable", "unknown-type", "too-old")
"""The reasons they are parked for."""

_SOURCE = "https://strangers.example"


async def send_strange_messages(amqp_url: str, count: int) -> None:
    """Send `count` messages of each kind: no events, of a type nobody takes, from before the dedup window."""
    outgoing: list[Outgoing] = []
    for n in range(count):
        now = datetime.now(UTC)
        unknown = Event(id=new_id(), source=_SOURCE, type="strangers.said.v1", time=now, data=b"{}")
        old = Event(id=new_id(), source=_SOURCE, type=TYPE, time=now - timedelta(days=8), data=b'{"n": %d}' % n)
        outgoing += [Outgoing(unknown, TYPE), Outgoing(old, TYPE)]
    async with RabbitMQBroker(amqp_url).publisher() as publisher:
        confirmation = await publisher.send(outgoing)
        assert all(isinstance(result, Confirmed) for result in await confirmation.wait())
    connection = await aiormq.connect(amqp_url)
    try:
        channel = await connection.channel()
        for n in range(count):
            # With an id: without one a redelivery is parked once more, and none could be counted.
            properties = aiormq.spec.Basic.Properties(
                content_type="application/cloudevents+json", delivery_mode=2, message_id=f"strange-{n}"
            )
            await channel.basic_publish(
                b"{no event %d" % n, exchange="sagapost", routing_key=TYPE, properties=properties
            )
    finally:
        await connection.close()
