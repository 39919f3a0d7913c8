"""A delivered message: kept as the broker sent it, and read as an event when somebody asks."""

from __future__ import annotations

from typing import Protocol

from sagapost.adapters.cloudevents import read_message
from sagapost.adapters.rabbitmq.contents import ContentError, read_incoming
from sagapost.core.broker import Malformed
from sagapost.core.envelope import Event
from sagapost.core.foreign import ForeignMessages

__all__ = ["RabbitMQDelivery"]


class _Receiver(Protocol):
    """The subscription that a message was handed to."""

    @property
    def foreign_policy(self) -> ForeignMessages:
        """How foreign messages are read."""
        ...


class RabbitMQDelivery:
    """One message handed to one subscription. The envelope is read when it is first asked for."""

    __slots__ = ("_content", "_count", "_properties", "_redelivered", "body", "subscription", "tag", "topic")

    def __init__(
        self,
        tag: int,
        topic: str,
        properties: bytes,
        body: bytes,
        redelivered: bool,
        subscription: _Receiver,
    ) -> None:
        self.tag = tag
        self.topic = topic
        self.body = body
        self.subscription = subscription
        self._properties = properties
        self._redelivered = redelivered
        self._content: Event | Malformed | None = None
        self._count = 0

    @property
    def content(self) -> Event | Malformed:
        """The decoded envelope, or why there is none."""
        return self._content or self._read()

    @property
    def delivery_count(self) -> int:
        """How often the broker handed this message out before; a classic queue only tells 0 from more."""
        if self._content is None:
            self._read()
        return self._count

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body)

    def _read(self) -> Event | Malformed:
        self._count = 1 if self._redelivered else 0
        content: Event | Malformed
        try:
            incoming = read_incoming(self._properties, self.body, self.topic)
        except ContentError as error:
            content = Malformed(reason=str(error), body=self.body, headers={})
        else:
            headers = incoming.headers
            # RabbitMQ 4.3 counts what it handed out; before, quorum queues count what came back.
            for name in ("x-acquired-count", "x-delivery-count"):
                count = headers.get(name)
                if isinstance(count, int) and count > self._count:
                    self._count = count
            content = read_message(incoming, self.subscription.foreign_policy)
        self._content = content
        return content
