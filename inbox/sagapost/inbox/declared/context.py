"""What a handler is given beside the event: the transaction, the envelope, and a way to publish within both."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Iterable, MutableMapping
from typing import Any, Unpack

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.outbox import Outbox, PublishOptions

__all__ = ["Context", "Delivered", "SyncContext"]

_log = logging.getLogger("sagapost.inbox")


class _EventLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the ids of the event to each record."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Merge the ids into `extra`; the caller's own values win."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Delivered:
    """What both kinds of context share."""

    __slots__ = ("_log", "_outbox", "attempt", "consumer", "event", "topic", "transaction")

    def __init__(
        self,
        *,
        consumer: str,
        event: Event,
        attempt: int,
        outbox: Outbox | None,
        topic: str | None = None,
        transaction: str = "",
    ) -> None:
        self.consumer = consumer
        """Name of the inbox."""
        self.event = event
        """The envelope, with the undecoded data."""
        self.attempt = attempt
        """1 for the first time this message is handled, as far as this process or the parked row knows."""
        self.topic = topic if topic is not None else event.type
        """What the message was published under."""
        self.transaction = transaction
        """Name of the transaction that the handler shares, by `Inbox.on(transaction=)`; empty: it has none."""
        self._outbox = outbox
        self._log: logging.LoggerAdapter[logging.Logger] | None = None

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the event's ids (never its data)."""
        if self._log is None:
            event = self.event
            self._log = _EventLog(
                _log,
                {
                    "consumer": self.consumer,
                    "event_id": event.id,
                    "event_type": event.type,
                    "correlationid": event.correlationid or event.id,
                },
            )
        return self._log

    @property
    def outbox(self) -> Outbox:
        """The outbox that events are published through.

        :raises ConfigurationError: if the inbox was made without one.
        """
        if self._outbox is None:
            raise ConfigurationError(
                f"The inbox {self.consumer!r} has no outbox to publish through. "
                "Make it with Inbox(..., outbox=Outbox(source=...))."
            )
        return self._outbox


class Context(Delivered):
    """The context of an `async def` handler.

    `session` is the transaction that also holds the dedup key: what is written through it and what is published are
    committed together after the handler returns, and acknowledged only then. The handler must not commit, roll back
    or close it; `session.begin_nested()` gives a part that can be undone.
    """

    __slots__ = ("session",)

    def __init__(
        self,
        *,
        consumer: str,
        event: Event,
        attempt: int,
        outbox: Outbox | None,
        session: AsyncSession,
        topic: str | None = None,
        transaction: str = "",
    ) -> None:
        super().__init__(
            consumer=consumer, event=event, attempt=attempt, outbox=outbox, topic=topic, transaction=transaction
        )
        self.session = session

    def publish(self, payload: object, /, **options: Unpack[PublishOptions]) -> Coroutine[Any, Any, Event]:
        """Publish an event in this transaction, within the saga of the event being handled; see `Outbox.publish`."""
        return self.outbox.publish(self.session, payload, **options)

    def publish_all(
        self, payloads: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, list[Event]]:
        """Publish several events in this transaction; see `Outbox.publish_all`."""
        return self.outbox.publish_all(self.session, payloads, **options)

    def cancel(
        self, *, event_id: str | None = None, correlationid: str | None = None, name: str | None = None
    ) -> Coroutine[Any, Any, int]:
        """Take back a scheduled event in this transaction; see `Outbox.cancel`."""
        return self.outbox.cancel(self.session, event_id=event_id, correlationid=correlationid, name=name)


class SyncContext(Delivered):
    """The context of a `def` handler, which runs in a worker thread; otherwise as `Context`, without `await`."""

    __slots__ = ("session",)

    def __init__(
        self,
        *,
        consumer: str,
        event: Event,
        attempt: int,
        outbox: Outbox | None,
        session: Session,
        topic: str | None = None,
        transaction: str = "",
    ) -> None:
        super().__init__(
            consumer=consumer, event=event, attempt=attempt, outbox=outbox, topic=topic, transaction=transaction
        )
        self.session = session

    def publish(self, payload: object, /, **options: Unpack[PublishOptions]) -> Event:
        """Publish an event in this transaction, within the saga of the event being handled; see `Outbox.publish`."""
        return self.outbox.publish(self.session, payload, **options)

    def publish_all(self, payloads: Iterable[object], /, **options: Unpack[PublishOptions]) -> list[Event]:
        """Publish several events in this transaction; see `Outbox.publish_all`."""
        return self.outbox.publish_all(self.session, payloads, **options)

    def cancel(self, *, event_id: str | None = None, correlationid: str | None = None, name: str | None = None) -> int:
        """Take back a scheduled event in this transaction; see `Outbox.cancel`."""
        return self.outbox.cancel(self.session, event_id=event_id, correlationid=correlationid, name=name)
