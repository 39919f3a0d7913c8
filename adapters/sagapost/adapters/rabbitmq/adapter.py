"""RabbitMQ for URLs `amqp://` and `amqps://`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sagapost.adapters.rabbitmq.broker import RabbitMQBroker
from sagapost.adapters.rabbitmq.settings import RabbitMQSettings
from sagapost.core.adapters import BrokerAdapter
from sagapost.core.foreign import ForeignMessages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sagapost.core.broker import Broker
    from sagapost.core.findings import Diagnosis

__all__ = ["adapter"]


def _make(url: str, settings: RabbitMQSettings, *, foreign: ForeignMessages) -> RabbitMQBroker:
    return RabbitMQBroker(
        url,
        exchange=settings.exchange,
        queue_type=settings.queue_type,
        heartbeat=settings.heartbeat,
        connect_timeout=settings.connect_timeout,
        confirm_timeout=settings.confirm_timeout,
        max_message_bytes=settings.max_message_bytes,
        delivery_limit=settings.delivery_limit,
        max_buffered_bytes=settings.max_buffered_bytes,
        foreign_policy=foreign,
    )


async def _examine(broker: Broker, queues: Mapping[str, bool | None]) -> Sequence[Diagnosis]:
    return await broker.examine(queues) if isinstance(broker, RabbitMQBroker) else ()


adapter = BrokerAdapter(
    name="rabbitmq",
    title="RabbitMQ",
    settings=RabbitMQSettings,
    make=_make,
    examine=_examine,
    example="amqp://orders:password@localhost:5672/",
    # aiormq logs each failed attempt as an error, in its own words; ours come from the exception, once.
    loggers={"aiormq": logging.CRITICAL, "aio_pika": logging.WARNING},
)
