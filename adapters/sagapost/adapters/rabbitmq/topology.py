"""Exchanges, queues, and bindings, declared as they are needed and never changed or removed behind anybody's back.

For an exchange `sagapost`, a queue `warehouse` and an observer's queue `tracker`::

    sagapost (topic)  --#-->  sagapost.listeners (topic)  --topics-->  warehouse
    sagapost.observed (topic)                             --topics-->  tracker
    warehouse  --reject, delivery limit-->  sagapost.dead (direct)  --"warehouse"-->  warehouse.dead

Queues are bound to an exchange of their own behind the one that is published to. When that one is deleted and made
anew, either all listeners get its messages again, by the first consumer that makes the one binding, or none does and
every message is returned: never some of them. Observers are not behind it, so that they do not count as listeners;
publishers send them copies (`observed`).

A queue always has its dead-letter queue: RabbitMQ 4 *drops* a message past the delivery limit where there is none.
A binding that is not asked for any more stays, since another release of the same service may still want it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, NamedTuple, TypeAlias

import aio_pika
from aio_pika import ExchangeType

from sagapost.adapters.rabbitmq.errors import (
    ACCESS_REFUSED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    conflicting_argument,
    declare_error,
)
from sagapost.adapters.rabbitmq.link import DRIVER_ERRORS, BrokerLink
from sagapost.adapters.rabbitmq.settings import TopologySettings
from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.core.broker import Queue, QueueDepth
from sagapost.core.errors import BrokerRefusedError, BrokerUnavailableError

__all__ = ["attempt", "count_of", "declare_exchange", "declare_observed", "declare_queue", "depth_of", "keep_bound"]

_log = logging.getLogger("sagapost.rabbitmq")

_EVERYTHING = "#"
"""The pattern of every topic."""
_ORDERED: Final = frozenset({"x-single-active-consumer"})
"""What an ordered queue cannot do without."""
_CURRENT = re.compile(r"but current is (?:none|(?:the value )?'(?P<value>[^']*)'(?: of type '(?P<type>\w+)')?)")
"""What a queue has, in the broker's words: read only to ask what else differs, and to say so."""
_MOST_ARGUMENTS: Final = 20
LISTENERS_BACK: Final = 12.0
"""Seconds that consumers which run on have to bind their queues to an exchange of the listeners that was lost."""


class _CloseWatch:
    """Leaves every frame to the driver and keeps why the channel was closed, by code."""

    def __init__(self) -> None:
        self.reason: CloseReason | None = None

    def on_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:  # noqa: ARG002 - the listener's form
        return False

    def on_closed(self, reason: CloseReason) -> None:
        self.reason = reason


async def declare_exchange(link: BrokerLink, settings: TopologySettings) -> None:
    """Declare the topic exchange that events are published to. Idempotent.

    :raises TopologyConflictError: if it exists with other arguments.
    :raises BrokerRefusedError: if the user may not declare it, and it is not there.
    :raises BrokerUnavailableError: if the connection ends.
    """
    await _have_topic_exchange(link, settings.exchange)


async def declare_observed(link: BrokerLink, settings: TopologySettings) -> CloseReason | None:
    """Make sure that there is an exchange for observers; return the broker's no where there is none to be had.

    :raises BrokerUnavailableError: if the connection ends.
    """
    entity, declare = _topic_exchange(settings.observed_exchange)
    return await _refusal_of(link, declare, entity, optional=True)


async def declare_queue(link: BrokerLink, settings: TopologySettings, queue: Queue) -> None:
    """Declare a queue with its dead-letter queue and bindings, and the exchanges they hang on. Idempotent.

    What the user may not declare is used as it is if it is there: somebody else then owns it, its arguments and its
    bindings, and of what is not there only the queue itself is needed. A queue with other arguments is used as it is
    too, with a warning, unless what is promised depends on them.

    :raises TopologyConflictError: if one of them exists with other arguments that matter; names the argument.
    :raises BrokerRefusedError: if the user may not declare the queue, and it is not there.
    :raises BrokerUnavailableError: if the connection ends.
    """
    await _have_topic_exchange(link, settings.exchange, optional=True)
    source = settings.source_of(queue)
    await _look_for_listeners(link, settings, queue)
    has_source = await _have_topic_exchange(link, source, optional=True)
    dead_exchange, dead_queue = settings.dead_letter_exchange, settings.dead_letter_queue(queue.name)
    has_dead_exchange = await _have(
        link,
        lambda channel, passive: channel.declare_exchange(
            dead_exchange, ExchangeType.DIRECT, durable=True, passive=passive
        ),
        _Entity("exchange", dead_exchange, "a durable direct exchange"),
        optional=True,
    )
    # The dead-letter queue comes first: once the work queue exists, something may already be dead-lettered from it.
    if await _have_queue(link, dead_queue, settings.dead_letter_arguments(), optional=True) and has_dead_exchange:
        await _bind(link, dead_exchange, queue.name, queue=dead_queue)
    await _have_queue(link, queue.name, settings.queue_arguments(queue), needed=_ORDERED if queue.ordered else ())
    if not has_source:
        return
    for topic in sorted(queue.topics):
        await _bind(link, source, topic, queue=queue.name)
    if not queue.observer and link.clock() >= settings.seen.tie_at:
        # Last, so that what is published meets all listeners or none.
        await _bind(link, settings.exchange, _EVERYTHING, exchange=source)
    await _leave(link, settings, queue)


async def keep_bound(link: BrokerLink, settings: TopologySettings, queue: Queue) -> None:
    """Bind a queue that is consumed once more, on one channel: somebody may have deleted an exchange meanwhile.

    An exchange that is deleted takes the bindings along and comes back without them, made anew by the next publisher
    or consumer that starts. Bindings that are there are left as they are. What this user may not bind is its owner's.

    :raises BrokerUnavailableError: if the connection ends.
    """
    source = settings.source_of(queue)
    await _look_for_listeners(link, settings, queue)

    async def declare(channel: aio_pika.Channel) -> None:
        for exchange in (settings.exchange, source):
            await channel.declare_exchange(exchange, ExchangeType.TOPIC, durable=True)

    async def bind(channel: aio_pika.Channel) -> None:
        bound = await channel.get_queue(queue.name, ensure=False)
        for topic in sorted(queue.topics):
            await bound.bind(source, routing_key=topic)
        if not queue.observer and link.clock() >= settings.seen.tie_at:
            await (await channel.get_exchange(source, ensure=False)).bind(settings.exchange, _EVERYTHING)

    for what in (declare, bind):
        refusal = await attempt(link, what, "queue", queue.name)
        if refusal is not None:
            _log.debug("the bindings of queue %r cannot be made again: %s", queue.name, refusal.said)


async def _look_for_listeners(link: BrokerLink, settings: TopologySettings, queue: Queue) -> None:
    """Find out whether the exchange of the listeners was lost, as with a virtual host that was deleted and made anew.

    Others that run on are not bound to the new one yet. So whoever makes it, and had seen the old one, ties it to what
    is published only when they have had the time; until then every event is returned, and waits in its outbox.
    """
    if queue.observer:
        return
    name, seen = settings.listeners_exchange, settings.seen
    missing = await attempt(link, lambda channel: channel.declare_exchange(name, passive=True), "exchange", name)
    if missing is not None and missing.code == NOT_FOUND and seen.listeners:
        seen.tie_at = link.clock() + LISTENERS_BACK
        _log.warning(
            "the exchange %r at %s was deleted; what is published waits %g s until every consumer is bound again",
            name,
            link.address,
            LISTENERS_BACK,
        )
    seen.listeners = True


async def depth_of(link: BrokerLink, settings: TopologySettings, queue: str) -> QueueDepth:
    """Return how much lies in a queue and in its dead-letter queue, as the answers to passive declarations say.

    :raises BrokerUnavailableError: if the connection ends.
    """
    dead_letter_queue = settings.dead_letter_queue(queue)
    messages, consumers = await count_of(link, queue)
    dead_letters, _ = await count_of(link, dead_letter_queue)
    return QueueDepth(queue, messages, consumers, dead_letter_queue, dead_letters)


async def count_of(link: BrokerLink, name: str) -> tuple[int | None, int | None]:
    """Return the messages and the consumers of a queue; None where it is not there or locked by another connection."""
    found: list[tuple[int | None, int | None]] = []

    async def look(channel: aio_pika.Channel) -> None:
        queue = await channel.declare_queue(name, passive=True)
        found.append((queue.declaration_result.message_count, queue.declaration_result.consumer_count))

    refusal = await attempt(link, look, "queue", name)
    return found[0] if refusal is None else (None, None)


async def _leave(link: BrokerLink, settings: TopologySettings, queue: Queue) -> None:
    """Take away the bindings that a queue has because it was an observer's and is none, or the other way round.

    With them an observer would count as a listener, and a listener would get everything twice.
    """
    former = (settings.exchange, settings.listeners_exchange) if queue.observer else (settings.observed_exchange,)
    for exchange in former:

        async def unbind(channel: aio_pika.Channel, exchange: str = exchange) -> None:
            bound = await channel.get_queue(queue.name, ensure=False)
            for topic in sorted(queue.topics):
                await bound.unbind(exchange, routing_key=topic)

        refusal = await attempt(link, unbind, "queue", queue.name)
        if refusal is not None:
            _log.debug("queue %r is not unbound from %r: %s", queue.name, exchange, refusal.said)


class _Entity(NamedTuple):
    """What is declared, for people."""

    kind: str
    name: str
    wanted: str
    """What an owner has to declare."""


async def _have_queue(
    link: BrokerLink,
    name: str,
    arguments: dict[str, Any],
    *,
    needed: Collection[str] = (),
    optional: bool = False,
) -> bool:
    """Have a durable queue; return whether it is there. One with other arguments than these is used as it is.

    :param needed: arguments without which it is of no use.
    :param optional: do without where this user may not declare it.
    """
    settings = ", ".join(f"{argument}={value}" for argument, value in arguments.items())
    entity = _Entity("queue", name, f"a durable queue with {settings}")
    asked, other = dict(arguments), list[str]()

    def declare(channel: aio_pika.Channel, passive: bool) -> Awaitable[object]:
        return channel.declare_queue(name, durable=True, passive=passive, arguments=asked)

    for _ in range(_MOST_ARGUMENTS):
        refusal = await _refusal_of(link, declare, entity, optional=optional)
        if refusal is None:
            break
        if optional and refusal.code == NOT_FOUND:
            _log.debug("there is no queue %r at %s, and this user may not make it", name, link.address)
            return False
        argument = conflicting_argument(refusal)
        if refusal.code != PRECONDITION_FAILED or not argument.startswith("x-") or argument in needed:
            raise declare_error(link.address, refusal, entity=entity.kind, name=entity.name)
        # The broker names one argument at a time. It is asked again with what the queue has, for what comes next.
        other.append(refusal.said)
        if not _take_over(asked, argument, refusal.text):
            raise declare_error(link.address, refusal, entity=entity.kind, name=entity.name)
    if other:
        _log.warning(
            "the queue %r at %s is used as it is, though it has other arguments than we would give it: %s",
            name,
            link.address,
            "; ".join(other),
        )
    return True


def _take_over(arguments: dict[str, Any], argument: str, said: str) -> bool:
    """Put what the queue has in the place of what was asked for; return whether it could be read."""
    found = _CURRENT.search(said)
    if found is None:
        return False
    before = arguments.pop(argument, None)
    value, type_ = found["value"], found["type"]
    if value is None:
        return before is not None
    if value in ("true", "false"):
        arguments[argument] = value == "true"
    elif value.lstrip("-").isdecimal() and (isinstance(before, int) or type_ not in (None, "longstr")):
        arguments[argument] = int(value)
    else:
        arguments[argument] = value
    return bool(arguments[argument] != before)


_Declare: TypeAlias = Callable[[aio_pika.Channel, bool], Awaitable[object]]


def _topic_exchange(name: str) -> tuple[_Entity, _Declare]:
    return (
        _Entity("exchange", name, "a durable topic exchange"),
        lambda channel, passive: channel.declare_exchange(name, ExchangeType.TOPIC, durable=True, passive=passive),
    )


async def _have_topic_exchange(link: BrokerLink, name: str, *, optional: bool = False) -> bool:
    entity, declare = _topic_exchange(name)
    return await _have(link, declare, entity, optional=optional)


async def _have(link: BrokerLink, declare: _Declare, entity: _Entity, *, optional: bool) -> bool:
    """Declare an exchange, or, where the user may not, look whether it is there; return whether it is.

    :param optional: do without where this user may not declare it: what hangs on it is then somebody else's.
    """
    refusal = await _refusal_of(link, declare, entity, optional=optional)
    if refusal is None:
        return True
    if refusal.code == PRECONDITION_FAILED and conflicting_argument(refusal) == "alternate-exchange":
        _log.warning("the %s %r at %s is used as it is: %s", entity.kind, entity.name, link.address, refusal.said)
        return True
    if optional and refusal.code == NOT_FOUND:
        _log.debug("there is no %s %r at %s, and this user may not make it", entity.kind, entity.name, link.address)
        return False
    raise declare_error(link.address, refusal, entity=entity.kind, name=entity.name)


async def _refusal_of(link: BrokerLink, declare: _Declare, entity: _Entity, *, optional: bool) -> CloseReason | None:
    """Declare an entity, or, where the user may not, make sure that it is there; return why it cannot be had.

    :raises BrokerRefusedError: if the user may not declare it and it is not there, unless that is optional.
    """
    refusal = await attempt(link, lambda channel: declare(channel, False), entity.kind, entity.name)
    if refusal is None or refusal.code != ACCESS_REFUSED:
        return refusal
    missing = await attempt(link, lambda channel: declare(channel, True), entity.kind, entity.name)
    if missing is None:
        _log.debug("%s %r is there; this user may not declare it: %s", entity.kind, entity.name, refusal.said)
        return None
    if missing.code == NOT_FOUND and not optional:
        raise BrokerRefusedError(
            f"The broker at {link.address} has no {entity.kind} {entity.name!r}, and refuses to let this user "
            f"declare it ({refusal.said}). Give the user permissions to, or let its owner declare {entity.wanted}."
        )
    return missing if missing.code == NOT_FOUND else refusal


async def _bind(link: BrokerLink, source: str, key: str, *, queue: str = "", exchange: str = "") -> None:
    """Bind a queue or an exchange to the exchange `source`."""
    entity = _Entity("queue", queue, "") if queue else _Entity("exchange", exchange, "")

    async def bind(channel: aio_pika.Channel) -> object:
        if queue:
            return await (await channel.get_queue(queue, ensure=False)).bind(source, routing_key=key)
        return await (await channel.get_exchange(exchange, ensure=False)).bind(source, routing_key=key)

    refusal = await attempt(link, bind, entity.kind, entity.name)
    if refusal is None:
        return
    if refusal.code != ACCESS_REFUSED:
        raise declare_error(link.address, refusal, entity=entity.kind, name=entity.name)
    # Nothing in the protocol lists bindings, so whether it is there cannot be found out.
    _log.warning(
        "%s %r at %s cannot be bound to %r for %r by this user (%s): without its owner's binding it gets nothing",
        entity.kind,
        entity.name,
        link.address,
        source,
        key,
        refusal.said,
    )


async def attempt(
    link: BrokerLink, declare: Callable[[aio_pika.Channel], Awaitable[object]], kind: str, name: str
) -> CloseReason | None:
    """Do it on a channel of its own, since a refusal closes that; return the refusal.

    :raises BrokerUnavailableError: if there is no answer.
    """
    channel = await link.channel()
    watch = _CloseWatch()
    link.listen(channel, watch)
    try:
        await link.rpc(declare(channel))
    except DRIVER_ERRORS as error:
        if watch.reason is None or link.lost is not None:
            raise BrokerUnavailableError(
                f"The broker at {link.address} could not declare the {kind} {name!r}: "
                f"{type(error).__name__}. Open the connection again."
            ) from error
        return watch.reason
    await link.close_channel(channel)
    return None
