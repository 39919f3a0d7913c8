"""Calling the handlers of a message in an open transaction, each with a context of the kind it expects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.codec import decode_data
from sagapost.core.context import bind, continue_from
from sagapost.core.envelope import Event
from sagapost.core.errors import DecodingError
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.context import Context
from sagapost.inbox.declared.handlers import Call
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.handling.faults import kind_of
from sagapost.inbox.handling.guarded import GuardedTransaction, Progress
from sagapost.inbox.handling.invocation import call_async, call_in_thread
from sagapost.inbox.handling.savepoints import Savepoints
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.kept.database import Database

__all__ = ["Execution", "decode", "decode_for"]


def decode(message: Message) -> list[object]:
    """Decode the data for each handler, converting older versions.

    Done anew for each try: a handler may have changed what it was given.

    :raises DecodingError: if it does not fit a class, or a conversion fails.
    """
    return [decode_for(call, message) for call in message.calls]


def decode_for(call: Call, message: Message) -> object:
    """Decode the data for one handler, as `decode` does for all."""
    event, cls, what = message.event, call.payload, "the class"
    try:
        payload: object = decode_data(event.data, cls, event_id=event.id, event_type=event.type)
        for upcaster in call.upcasts:
            cls, what = upcaster.from_class, f"its conversion to {upcaster.to_type!r}"
            payload = upcaster.function(payload)
    except DecodingError:
        raise
    except BaseException as error:  # users' validators and conversions; nothing is awaited, so it is all theirs
        raise DecodingError(
            event_id=event.id, event_type=event.type, cls=cls, reason=f"{what} raised {kind_of(error)}"
        ) from error
    return payload


class Execution(GuardedTransaction):
    """Handlers at work in one transaction, which is open and holds the dedup keys."""

    __slots__ = ("_inbox", "_threads")

    def __init__(
        self,
        inbox: Inbox,
        database: Database,
        sessions: HandlerSessions,
        threads: anyio.CapacityLimiter,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
        savepoints: Savepoints | None = None,
    ) -> None:
        super().__init__(database, sessions, connection, outer, progress, savepoints)
        self._inbox = inbox
        self._threads = threads

    def handle(self, call: Call, payload: object, message: Message, attempt: int) -> None:
        """Call one handler and wait for it; raises what it raises."""
        inbox, handler, event = self._inbox, call.handler, message.event
        saga, around = continue_from(event), inbox.around(event)
        if handler.asynchronous:
            ctx = self._context(message, attempt)
            handling = call_async(handler.function, payload, ctx, saga, around)
        else:
            sync_ctx = inbox.sync_context(
                consumer=inbox.name,
                event=event,
                attempt=attempt,
                outbox=inbox.outbox,
                session=self.session.sync_session,
                topic=message.topic,
                transaction=handler.transaction,
            )
            handling = call_in_thread(handler.function, payload, sync_ctx, saga, around, self._threads)
        self.call(handler.name, handling)

    def handle_instead(
        self, work: Callable[[Context], Awaitable[None]], name: str, message: Message, attempt: int
    ) -> None:
        """Call what is done in place of the handlers, and wait for it; raises what it raises."""
        inbox, event = self._inbox, message.event
        ctx = self._context(message, attempt)

        async def instead(_payload: object, ctx: Context) -> None:
            await work(ctx)

        self.call(name, call_async(instead, None, ctx, continue_from(event), inbox.around(event)))

    def _context(self, message: Message, attempt: int) -> Context:
        inbox = self._inbox
        return inbox.context(
            consumer=inbox.name,
            event=message.event,
            attempt=attempt,
            outbox=inbox.outbox,
            session=self.session,
            topic=message.topic,
            transaction=message.calls[0].handler.transaction,
        )

    def write_for(self, event: Event) -> None:
        """Send what is pending to the database; what listeners of the flush publish is caused by the event."""
        with bind(continue_from(event)):
            self.write()
