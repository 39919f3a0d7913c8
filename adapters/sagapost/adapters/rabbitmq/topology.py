"""Exchanges, queues, and bindings, declared as they are needed and never changed or removed behind anybody's back.

For an exchange `sagapost` and a queue `warehouse`::

    sagapost (topic)  --topics-->  warehouse  --reject, delivery limit-->  sagapost.dead (direct)
                                                     --"warehouse"-->  warehouse.dead

A queue always has its dead-letter queue: RabbitMQ 4 *drops* a message past the delivery limit where there is none.
A binding that is not asked for any more stays, since another release of the same service may still want it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import aio_pika
from aio_pika import ExchangeType

from sagapost.adapters.rabbitmq.errors import declare_error
from sagapost.adapters.rabbitmq.link import DRIVER_ERRORS, Link
from sagapost.adapters.rabbitmq.settings import TopologySettings
from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.core.broker import Queue
from sagapost.core.errors import BrokerUnavailableError

__all__ = ["declare_exchange", "declare_queue"]

_T = TypeVar("_T")


class _CloseWatch:
    """Leaves every frame to the driver and keeps why the channel was closed, by code."""

    def __init__(self) -> None:
        self.reason: CloseReason | None = None

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:  # noqa: ARG002 - the listener's form
        return False

    def on_closed(self, reason: CloseReason) -> None:
        self.reason = reason


async def declare_exchange(link: Link, settings: TopologySettings) -> None:
    """Declare the topic exchange that events are published to. Idempotent.

    :raises TopologyConflictError: if it exists with other arguments.
    :raises BrokerRefusedError: if the user may not declare it.
    :raises BrokerUnavailableError: if the connection ends.
    """
    channel = await link.channel()
    watch = _watch(link, channel)
    name = settings.exchange
    declaring = channel.declare_exchange(name, ExchangeType.TOPIC, durable=True)
    await _declare(link, declaring, watch, entity="exchange", name=name)
    await link.close_channel(channel)


async def declare_queue(link: Link, settings: TopologySettings, queue: Queue) -> None:
    """Declare a queue with its dead-letter queue and bindings, and the exchanges they hang on. Idempotent.

    :raises TopologyConflictError: if one of them exists with other arguments; names the argument.
    :raises BrokerRefusedError: if the user may not declare it.
    :raises BrokerUnavailableError: if the connection ends.
    """
    await declare_exchange(link, settings)
    channel = await link.channel()
    watch = _watch(link, channel)
    dead_exchange, dead_queue = settings.dead_letter_exchange, settings.dead_letter_queue(queue.name)
    declaring = channel.declare_exchange(dead_exchange, ExchangeType.DIRECT, durable=True)
    await _declare(link, declaring, watch, entity="exchange", name=dead_exchange)
    # The dead-letter queue comes first: once the work queue exists, something may already be dead-lettered from it.
    declaring_queue = channel.declare_queue(dead_queue, durable=True, arguments=settings.dead_letter_arguments())
    dead = await _declare(link, declaring_queue, watch, entity="queue", name=dead_queue)
    binding = dead.bind(dead_exchange, routing_key=queue.name)
    await _declare(link, binding, watch, entity="queue", name=dead_queue)
    declaring_queue = channel.declare_queue(queue.name, durable=True, arguments=settings.queue_arguments(queue))
    work = await _declare(link, declaring_queue, watch, entity="queue", name=queue.name)
    for topic in sorted(queue.topics):
        binding = work.bind(settings.exchange, routing_key=topic)
        await _declare(link, binding, watch, entity="queue", name=queue.name)
    await link.close_channel(channel)


def _watch(link: Link, channel: aio_pika.Channel) -> _CloseWatch:
    watch = _CloseWatch()
    link.listen(channel, watch)
    return watch


async def _declare(link: Link, rpc: Awaitable[_T], watch: _CloseWatch, *, entity: str, name: str) -> _T:
    try:
        return await link.rpc(rpc)
    except DRIVER_ERRORS as error:
        raise _translate(link, watch, error, entity=entity, name=name) from error


def _translate(link: Link, watch: _CloseWatch, error: BaseException, *, entity: str, name: str) -> Exception:
    if watch.reason is not None:
        return declare_error(link.address, watch.reason, entity=entity, name=name)
    return BrokerUnavailableError(
        f"The broker at {link.address} could not declare the {entity} {name!r}: {type(error).__name__}. "
        "Open the connection again."
    )
