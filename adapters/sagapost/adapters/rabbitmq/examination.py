"""What is wrong with exchanges and queues, as far as AMQP lets a client see it. Declares and changes nothing.

Nothing in the protocol lists bindings, so whether they are there is not looked at: an event that no queue is bound for
is held in the outbox, with that reason.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import aio_pika
import anyio
from aio_pika import ExchangeType

from sagapost.adapters.rabbitmq.errors import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, conflicting_argument
from sagapost.adapters.rabbitmq.link import BrokerLink
from sagapost.adapters.rabbitmq.settings import TopologySettings
from sagapost.adapters.rabbitmq.topology import attempt, count_of
from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.core.broker import Queue
from sagapost.core.findings import Diagnosis, Severity

__all__ = ["examine"]

_DECLARE: Final = "sagapost declare MODULE:SERVICE"
_ANSWER: Final = 2.0
"""Seconds for the answer to a publish that is taken back: under a resource alarm there is none."""

Declare = Callable[[aio_pika.Channel, bool], Awaitable[object]]


async def examine(
    link: BrokerLink, settings: TopologySettings, queues: Mapping[str, bool | None]
) -> Sequence[Diagnosis]:
    """Look at the exchanges, at these queues, and at whether this user may publish.

    :param queues: by name, whether each is ordered; None: nobody knows.
    :raises BrokerUnavailableError: if the connection ends.
    """
    found = [each async for each in _exchange(link, settings.exchange, ExchangeType.TOPIC)]
    there = not any(each.code == "exchange-missing" for each in found)
    if queues:
        found += [each async for each in _exchange(link, settings.listeners_exchange, ExchangeType.TOPIC)]
        found += [each async for each in _exchange(link, settings.dead_letter_exchange, ExchangeType.DIRECT)]
    for name, ordered in queues.items():
        found += [each async for each in _queue(link, settings, name, ordered)]
        found += [each async for each in _dead_letter_queue(link, settings, name)]
    if there:
        # Last: a broker with an alarm answers nothing more on this connection.
        found += [each async for each in _publishing(link, settings.exchange)]
    return found


async def _exchange(link: BrokerLink, name: str, kind: ExchangeType) -> AsyncIterator[Diagnosis]:
    def declare(channel: aio_pika.Channel, passive: bool) -> Awaitable[object]:
        return channel.declare_exchange(name, kind, durable=True, passive=passive)

    refusal = await _compare(link, name, declare)
    if refusal is None:
        return
    if refusal.code == NOT_FOUND:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="exchange-missing",
            subject=name,
            evidence="there is no such exchange: nothing can be published to it",
            remedy=f"{_DECLARE}, or restart relays and consumers: each declares it when it starts",
        )
    elif refusal.code == PRECONDITION_FAILED:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="exchange-other",
            subject=name,
            evidence=f"the exchange is not the durable {kind.value} exchange that is asked for: {refusal.said}",
            remedy="name another in SAGAPOST_EXCHANGE, or let its owner make it what it should be",
        )


async def _queue(
    link: BrokerLink, settings: TopologySettings, name: str, ordered: bool | None
) -> AsyncIterator[Diagnosis]:
    refusal: CloseReason | None = None
    for wanted in (False, True) if ordered is None else (ordered,):
        arguments = settings.queue_arguments(Queue(name, ordered=wanted))
        refusal = await _compare(link, name, _declared(name, arguments))
        if refusal is None or refusal.code != PRECONDITION_FAILED:
            break
    if refusal is not None and refusal.code == NOT_FOUND:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="queue-missing",
            subject=name,
            evidence="there is no such queue: events for it are held, or gone where others take them too",
            remedy=_DECLARE,
        )
        return
    if refusal is not None and refusal.code == PRECONDITION_FAILED:
        matters = conflicting_argument(refusal) == "x-single-active-consumer"
        yield Diagnosis(
            severity=Severity.ERROR if matters else Severity.WARNING,
            code="queue-other",
            subject=name,
            evidence="its arguments are not those that a consumer with these settings declares, which uses it as it "
            f"is unless order depends on them: {refusal.said}",
            remedy="set what it was made with (SAGAPOST_QUEUE_TYPE, SAGAPOST_BROKER_DELIVERY_LIMIT, "
            "SAGAPOST_EXCHANGE), or change the queue as the operations guide says, which loses nothing",
        )
    _, consumers = await count_of(link, name)
    if consumers == 0:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="queue-not-consumed",
            subject=name,
            evidence="nobody consumes it",
            remedy="sagapost consume MODULE:SERVICE; delete the queue if the service is gone, for it goes on filling",
        )


async def _dead_letter_queue(link: BrokerLink, settings: TopologySettings, queue: str) -> AsyncIterator[Diagnosis]:
    name, arguments = settings.dead_letter_queue(queue), settings.dead_letter_arguments()
    refusal = await _compare(link, name, _declared(name, arguments))
    if refusal is not None and refusal.code == NOT_FOUND:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="dead-letter-queue-missing",
            subject=name,
            evidence=f"there is no such queue: what {queue} rejects, or hands out too often, is dropped",
            remedy=_DECLARE,
        )
    elif refusal is not None and refusal.code == PRECONDITION_FAILED:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="dead-letter-queue-other",
            subject=name,
            evidence=f"its arguments are not those that a consumer declares: {refusal.said}",
            remedy="leave it if its owner means it so: it is used as it is",
        )


async def _publishing(link: BrokerLink, exchange: str) -> AsyncIterator[Diagnosis]:
    """Publish in a transaction that is taken back: rights are looked at, and nothing is routed."""

    async def publish(channel: aio_pika.Channel) -> None:
        driver = await channel.get_underlay_channel()
        await driver.tx_select()
        await driver.basic_publish(b"", exchange=exchange, routing_key="sagapost.doctor")
        await driver.tx_rollback()

    refusal: CloseReason | None = None
    with anyio.move_on_after(_ANSWER) as limit:
        refusal = await attempt(link, publish, "exchange", exchange)
    if limit.cancelled_caught or link.blocked:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="alarm",
            subject=link.address,
            evidence="the broker takes in nothing: a resource alarm (memory or disk)"
            if link.blocked
            else f"the broker did not answer a publish within {_ANSWER:g} s",
            remedy="rabbitmq-diagnostics alarms; free disk space, or let consumers empty the queues",
        )
    elif refusal is not None and refusal.code == ACCESS_REFUSED:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="right",
            subject=exchange,
            evidence=f"this user may not publish to it: {refusal.said}",
            remedy="rabbitmqctl set_permissions -p VHOST USER CONFIGURE WRITE READ, with WRITE matching the exchange",
        )


def _declared(name: str, arguments: dict[str, Any]) -> Declare:
    def declare(channel: aio_pika.Channel, passive: bool) -> Awaitable[object]:
        return channel.declare_queue(name, durable=True, passive=passive, arguments=arguments)

    return declare


async def _compare(link: BrokerLink, name: str, declare: Declare) -> CloseReason | None:
    """Return why something is not there as it is declared; None: it is, or this user may not compare it."""
    # First passively, for the second one would make what is not there.
    refusal = await attempt(link, lambda channel: declare(channel, True), "exchange or queue", name)
    if refusal is None:
        refusal = await attempt(link, lambda channel: declare(channel, False), "exchange or queue", name)
    return refusal
