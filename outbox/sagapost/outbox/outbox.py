"""`Outbox`: the one object a service publishes through."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Any, Unpack, overload

import msgspec

from sagapost.core.clock import Clock, SystemClock
from sagapost.core.envelope import MAX_NAME_LENGTH, Event
from sagapost.core.errors import ConfigurationError
from sagapost.outbox.aggregates import SessionSource, capture
from sagapost.outbox.envelope import seal, validate_topic
from sagapost.outbox.handles import AsyncHandle, SyncHandle, after, cancel, write
from sagapost.outbox.options import PublishOptions
from sagapost.outbox.rows import Rows, Target, row_values, scheduled_values
from sagapost.outbox.scheduled import Cancellation, due_time, validate_schedule
from sagapost.outbox.tables import OutboxTables

__all__ = ["DEFAULT_MAX_BYTES", "Outbox"]

DEFAULT_MAX_BYTES = 1_048_576


class Outbox:
    """Writes events into the caller's transaction: they exist if and only if it commits.

    Declarative and safe to share between threads and tasks; it opens nothing.

    :param source: CloudEvents `source` of every event: a URI that names this service.
    :param tables: where the events go; default: tables of the default names in a MetaData of their own.
    :param max_bytes: largest encoded payload. Brokers have limits of their own (RabbitMQ: 16 MiB by default).
    :param clock: stamps `time` on events. PostgreSQL corrects what is not within seconds of its own clock.
    :param trace: returns `traceparent` and `tracestate` of the running code, or None: events then carry them. Without
        it, or outside any trace, an event published by a handler carries those of the event being handled.
    :raises ConfigurationError: if the source is empty or over 255 bytes, or `max_bytes` is not positive.
    """

    def __init__(
        self,
        *,
        source: str,
        tables: OutboxTables | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        clock: Clock | None = None,
        trace: Callable[[], tuple[str, str | None] | None] | None = None,
    ) -> None:
        if not 0 < len(source.encode()) <= MAX_NAME_LENGTH:
            raise ConfigurationError(
                f"Outbox(source=) has 1 to {MAX_NAME_LENGTH} bytes, for example "
                f'"https://orders.example.com"; this one has {len(source.encode())}.'
            )
        if max_bytes <= 0:
            raise ConfigurationError(f"Outbox(max_bytes=) is a positive number of bytes, not {max_bytes}.")
        self.source = source
        self.tables = tables if tables is not None else OutboxTables()
        self.max_bytes = max_bytes
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._trace = trace
        self._now = Target(self.tables.outbox)
        self._later = Target(self.tables.scheduled, "deliver_at", "name", corrected=False)

    @overload
    def publish(self, handle: SyncHandle, payload: object, /, **options: Unpack[PublishOptions]) -> Event: ...

    @overload
    def publish(
        self, handle: AsyncHandle, payload: object, /, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, Event]: ...

    def publish(
        self, handle: SyncHandle | AsyncHandle, payload: object, /, **options: Unpack[PublishOptions]
    ) -> Event | Coroutine[Any, Any, Event]:
        """Publish one event in the transaction that is open on `handle`; see `PublishOptions` for the arguments.

        Nothing is flushed, committed or begun. Through a session the row is pending like the session's objects and
        written after them, in one INSERT per flush with all other events; through a connection it is written at once.
        Rolling back, also to a savepoint, leaves nothing.

        What drops a session's pending objects drops its pending events: flush before `expunge_all`.

        With an AsyncSession the event is in the session when the call returns, before it is awaited, so a forgotten
        `await` loses nothing. With an AsyncConnection or an asyncpg connection the await does the work.

        :param handle: the Session, Connection, AsyncSession or AsyncConnection of the transaction, or the
            connection of asyncpg, psycopg (synchronous) or Django.
        :param payload: an instance of a class named with `@event`, or anything the codec takes together with `type=`.
        :returns: the event; for asynchronous handles an awaitable of it.
        :raises NotInTransactionError: if no transaction ties the event to other changes.
        :raises PublishError: if the event cannot be published as it is (one subclass per reason); nothing was written.
        :raises SchemaError: if the database has no outbox; through a session, from the flush.
        """
        (event,), rows = self._seal([payload], **options)
        written = write(handle, rows)
        return event if written is None else after(written, event, method="Outbox.publish")

    @overload
    def publish_all(
        self, handle: SyncHandle, payloads: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Event]: ...

    @overload
    def publish_all(
        self, handle: AsyncHandle, payloads: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> Coroutine[Any, Any, list[Event]]: ...

    def publish_all(
        self, handle: SyncHandle | AsyncHandle, payloads: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Event] | Coroutine[Any, Any, list[Event]]:
        """Publish several events that share their options, in this order; all of them or none.

        Through a connection they are written by one INSERT. Otherwise as `publish`, which also says what it raises.
        """
        events, rows = self._seal(payloads, **options)
        written = write(handle, rows)
        return events if written is None else after(written, events, method="Outbox.publish_all")

    @overload
    def cancel(
        self,
        handle: SyncHandle,
        /,
        *,
        event_id: str | None = None,
        correlationid: str | None = None,
        name: str | None = None,
    ) -> int: ...

    @overload
    def cancel(
        self,
        handle: AsyncHandle,
        /,
        *,
        event_id: str | None = None,
        correlationid: str | None = None,
        name: str | None = None,
    ) -> Coroutine[Any, Any, int]: ...

    def cancel(
        self,
        handle: SyncHandle | AsyncHandle,
        /,
        *,
        event_id: str | None = None,
        correlationid: str | None = None,
        name: str | None = None,
    ) -> int | Coroutine[Any, Any, int]:
        """Take back a scheduled event, by id or by saga and name, in the transaction open on `handle`.

        By saga and name those of this outbox's `source`: services that share a database do not take back each
        other's.

        Takes effect when that transaction commits. Unlike `publish` it sends its statement at once, so the await of
        an asynchronous handle does the work.

        :returns: how many were taken back; 0 if there is none, for instance because it was due and is on its way.
        :raises NotInTransactionError: if no transaction is open on `handle`.
        :raises TypeError: unless called with either `event_id`, or both `correlationid` and `name`.
        """
        cancellation = Cancellation(
            self._later, source=self.source, event_id=event_id, correlationid=correlationid, name=name
        )
        return cancel(handle, cancellation)

    def capture(self, sessions: SessionSource, /) -> None:
        """Publish what `Recorder` aggregates record, in the transaction of the session they belong to.

        :param sessions: a sessionmaker (also asynchronous or scoped), one session, or a subclass of Session.
        :raises TypeError: if it is none of these.
        """
        capture(self, sessions)

    def _seal(
        self,
        payloads: Iterable[object],
        *,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 the CloudEvents name
        subject: str | None = None,
        topic: str | None = None,
        datacontenttype: str | None = None,
        dataschema: str | None = None,
        extensions: Mapping[str, str] | None = None,
        correlationid: str | None = None,
        deliver_at: datetime | None = None,
        name: str | None = None,
    ) -> tuple[list[Event], Rows]:
        """Return the events of `payloads` and their rows; everything that can be refused is refused here."""
        if topic is not None:
            validate_topic(topic)
        events = [
            seal(
                payload,
                source=self.source,
                clock=self.clock,
                max_bytes=self.max_bytes,
                key=key,
                type_=type,
                subject=subject,
                datacontenttype=datacontenttype,
                dataschema=dataschema,
                extensions=extensions,
                correlationid=correlationid,
            )
            for payload in payloads
        ]
        traced = self._trace() if self._trace is not None else None
        if traced is not None:
            parent, state = traced
            events = [msgspec.structs.replace(event, traceparent=parent, tracestate=state) for event in events]
        if deliver_at is None and name is None:
            return events, Rows(self._now, [row_values(event, topic or event.type) for event in events])
        for event in events:
            validate_schedule(event, deliver_at=deliver_at, name=name)
        if deliver_at is None:
            # Only an empty list of payloads comes here: any event would have been refused for its name.
            return events, Rows(self._now, [])
        # It happens when it is due: that is its `time`, and what an inbox judges its age by. Stamped now, a deadline
        # beyond the inbox's dedup window would be born too old; due long ago, it happens now.
        due = due_time(deliver_at)
        events = [msgspec.structs.replace(event, time=max(due, event.time)) for event in events]
        rows = [scheduled_values(event, topic or event.type, deliver_at=due, name=name) for event in events]
        return events, Rows(self._later, rows)
