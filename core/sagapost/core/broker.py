"""The broker port: what the relay and the inbox need of a message broker, and what they may rely on.

An adapter implements `Broker`. It must pass `tests/conformance/broker.py` with the capabilities it declares.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import NoReturn, Protocol, TypeAlias

import msgspec

from sagapost.core.envelope import Event
from sagapost.core.foreign import ForeignMessages

__all__ = [
    "Broker",
    "BrokerCapabilities",
    "Confirmation",
    "Confirmed",
    "Delivery",
    "Malformed",
    "Outgoing",
    "PublishResult",
    "Publisher",
    "Queue",
    "QueueDepth",
    "Rejected",
    "Returned",
    "Subscription",
    "Unknown",
]


# --- publishing ---


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One event on its way out.

    `destination` is the exchange (None: the publisher's default); `topic` the routing key, by default the event type.
    """

    event: Event
    topic: str
    destination: str | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The broker took responsibility for the message *and* routed it to at least one queue that is no observer's."""


@dataclass(frozen=True, slots=True)
class Returned:
    """No queue but those of observers is bound for the message's topic: it was **not** published."""

    reason: str
    observed: bool = False
    """Whether an observer has it."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The broker refused this message, and not the connection: it was **not** published.

    For want of a right on its destination or topic, a missing destination, its size, or a queue that takes nothing
    more. It is a property of the message until somebody changes something, and never of its neighbours: they have
    results of their own. Also given to what was sent after it under the same key and would overtake it.
    """

    reason: str
    """The broker's own words, where it had some."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The connection ended, or the time limit passed, before an answer: it may or may not have been published.

    Publish it again under the same id; consumers recognise the duplicate. A refusal of one message is never given as
    `Unknown`, neither to that message nor to its neighbours: whoever publishes again would publish the same for ever.
    """

    reason: str


PublishResult: TypeAlias = Confirmed | Returned | Rejected | Unknown


class Confirmation(Protocol):
    """The pending answer of the broker to one sent batch."""

    async def wait(self) -> Sequence[PublishResult]:
        """Wait for the answer to every message of the batch; results are in the order of the batch.

        Never raises for a message or for a lost connection (those are `Unknown`), and always ends: within the
        publisher's confirm timeout every message has a result. Its clock stands still while the publisher is
        `blocked`, since the broker then answers nothing and takes in later what was sent. May be awaited by several
        tasks and again. Cancelling the wait does not unsend anything.
        """
        ...


class Publisher(Protocol):
    """One ordered, confirmed stream of messages to the broker.

    Order: messages reach the broker in the order of the `send` calls and, within one, of the batch. For messages
    that share a topic and destination the broker's queues see that order. After a lost connection what arrived is a
    *prefix* of what was sent and not answered.

    A refusal of one message is the answer to that message. Where the broker ends the stream over it, the publisher
    finds out over which, and goes on with the others on the same connection: what was unanswered is published again
    once, in its order, and what was refused before is not sent again before the broker would take it.

    Not safe for concurrent `send` calls from several tasks; confirmations may be awaited anywhere.
    """

    async def send(self, batch: Sequence[Outgoing]) -> Confirmation:
        """Hand a batch to the transport; return once it is written (back-pressure) without waiting for confirms.

        A message over the broker's size limit, or for a destination that does not exist or may not be written to,
        is not sent and yields `Rejected`; the others of the batch are sent. Among the messages in flight, event id,
        destination and topic together must be unique. Cancelling leaves the stream in order: nothing of the batch is
        written, or all of it.

        :raises BrokerUnavailableError: if the connection is down or the write did not finish in time. Messages of
            this batch may have been sent (treat all of them as `Unknown`); this publisher is then closed.
        :raises BrokerRefusedError: if the broker ended the connection because the user lacks a permission; likewise.
        """
        ...

    async def until_lost(self) -> NoReturn:
        """Wait until this publisher is closed, and raise: a lost connection is noticed while there is nothing to send.

        Cancelling it changes nothing.

        :raises BrokerUnavailableError: if the connection was lost or the publisher closed.
        :raises BrokerRefusedError: if the broker ended the connection because the user lacks a permission.
        """
        ...

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked publishers to pause (a resource alarm)."""
        ...

    @property
    def max_message_bytes(self) -> int | None:
        """Largest `Event.data` that should go through; larger ones are `Rejected`. None: no limit is known.

        Sinks when the broker refuses a smaller one.
        """
        ...


# --- consuming ---


@dataclass(frozen=True, slots=True)
class Queue:
    """A consumer's queue: durable, named after the consumer, bound to the topics of its handlers.

    `topics` are exact routing keys or patterns in which `*` is one dot-separated word and `#` any number of them.
    `ordered`: only one of several connected consumers receives at a time, and another takes over when it goes.
    `observer`: it gets a copy of what is published (a tracker, an audit) and does not count as a listener: an event
    that only observers would take is `Returned`, and they have their copy all the same. An observer gets what is
    published from a second after its queue was bound, at least once, for as long as the broker takes the copies.
    `foreign`: how messages in it are read that are no CloudEvents; None: as the broker is set up to.
    """

    name: str
    topics: frozenset[str] = field(default_factory=lambda: frozenset[str]())
    ordered: bool = False
    observer: bool = False
    foreign: ForeignMessages | None = field(default=None, compare=False)


class Malformed(msgspec.Struct, frozen=True):
    """A message that could not be read as an event, kept whole so that nothing is lost."""

    reason: str
    body: bytes
    headers: Mapping[str, str]
    message_id: str | None = None
    type: str | None = None
    properties: Mapping[str, str] = {}
    """What else came beside the body and is needed to read it again, by the adapter's names."""


class Delivery(Protocol):
    """One message handed to this consumer and not yet settled."""

    @property
    def content(self) -> Event | Malformed:
        """The decoded envelope, or why there is none."""
        ...

    @property
    def topic(self) -> str:
        """The topic the message was published under."""
        ...

    @property
    def delivery_count(self) -> int:
        """How often the broker handed this message out before (0 on the first time); a lower bound."""
        ...

    @property
    def size(self) -> int:
        """Bytes of the body."""
        ...


class Subscription(Protocol):
    """A stream of deliveries from one queue, at most `prefetch` of them unsettled at a time.

    Iteration ends when `stop()` was called and what was received by then has been handed out.
    What is still unsettled when the subscription closes goes back to its place in the queue. A consumer of an ordered
    queue is replaced when it closes, not before, so what it has in flight after `stop()` is not overtaken.

    :raises BrokerUnavailableError: from iteration, if the connection is lost, the queue is deleted, or the broker
        cancels the consumer. Unsettled deliveries will be delivered again.
    """

    def __aiter__(self) -> AsyncIterator[Delivery]:
        """Iterate over deliveries in the queue's order."""
        ...

    async def ack(self, *deliveries: Delivery) -> None:
        """Tell the broker these are done. Idempotent.

        :raises BrokerUnavailableError: if the connection is gone; the broker will deliver them again.
        """
        ...

    async def reject(self, delivery: Delivery, *, requeue: bool) -> None:
        """Handling failed: count an attempt and requeue, or dead-letter at the broker (`requeue=False`)."""
        ...

    async def release(self, *deliveries: Delivery) -> None:
        """Give deliveries back untouched (shutdown, pause): where the broker can tell, no attempt is counted."""
        ...

    async def stop(self) -> None:
        """Receive nothing new; deliveries in flight can still be settled. Idempotent."""
        ...


# --- looking ---


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much lies in a consumer's queue, and among what the broker keeps of what that consumer rejected."""

    queue: str
    messages: int | None
    """Those that wait to be handed out; None: there is no such queue, or it may not be looked at."""
    consumers: int | None
    """How many are connected to it; None as above."""
    dead_letter_queue: str | None
    """Where the broker puts what is rejected and what was handed out too often; None: it has no such place."""
    dead_letters: int | None
    """How many messages are there; None: there is no such queue, or it may not be looked at."""


# --- the port ---


@dataclass(frozen=True, slots=True)
class BrokerCapabilities:
    """What an adapter promises; the conformance suite tests what is declared and skips the rest by declaration."""

    durable: bool
    """Messages and queues survive a restart of the broker."""
    reports_unroutable: bool
    """A message that no queue is bound for is `Returned` rather than `Confirmed`."""
    counts_deliveries: bool
    """`delivery_count` is kept by the broker across consumers."""
    single_active_consumer: bool
    """`Queue.ordered` is honoured across processes."""
    crosses_processes: bool
    """Several processes can share it."""
    max_prefetch: int | None = None
    """The largest `prefetch` that `subscribe` takes; None: any."""


class Broker(Protocol):
    """A message broker. Stateless configuration: each publisher and subscription opens what it needs."""

    @property
    def capabilities(self) -> BrokerCapabilities:
        """What this adapter promises."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for logs and errors; without credentials."""
        ...

    def publisher(self) -> AbstractAsyncContextManager[Publisher]:
        """Open a publisher on a connection of its own; closed, with nothing leaked, on exit also when cancelled.

        :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout.
        :raises BrokerRefusedError: if it was reached and refused.
        :raises TopologyConflictError: if the exchange exists with other arguments.
        """
        ...

    def subscribe(self, queue: Queue, *, prefetch: int) -> AbstractAsyncContextManager[Subscription]:
        """Declare the queue with its bindings and consume from it on a connection of its own.

        :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout.
        :raises BrokerRefusedError: if it was reached and refused, also if the user may not read the queue.
        :raises TopologyConflictError: if the queue exists with other arguments; names the argument.
        """
        ...

    async def declare(self, *queues: Queue) -> None:
        """Create exchange, queues and bindings ahead of time. Idempotent; raises like `subscribe`."""
        ...

    def read(
        self, message: Malformed, topic: str, *, received_at: datetime, foreign: ForeignMessages | None = None
    ) -> Event | Malformed:
        """Read again what could not be read as an event, with the settings as they are now. Raises for no message.

        :param received_at: the event's time, where the message says none.
        :param foreign: as of the queue that it was in (`Queue.foreign`).
        """
        ...

    async def depths(self, *queues: str) -> Sequence[QueueDepth]:
        """Return how much lies in the queues of these names, in their order. Declares and changes nothing.

        Without a name: only proves that the broker answers and takes the credentials.

        :raises BrokerUnavailableError: if the broker cannot be reached within the connect timeout.
        :raises BrokerRefusedError: if it was reached and refused.
        """
        ...
