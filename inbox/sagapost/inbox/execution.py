"""Running handlers in an open transaction, and ending it; in the greenlet that SQLAlchemy's core was entered in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.util import await_only  # 2.1 calls it await_; the old name is in 2.0 as well

from sagapost.core.codec import decode_data
from sagapost.core.context import bind, continue_from
from sagapost.core.envelope import Event
from sagapost.core.errors import DecodingError, HandlerError
from sagapost.inbox.context import Context
from sagapost.inbox.database import Database
from sagapost.inbox.handlers import Call
from sagapost.inbox.inbox import Inbox
from sagapost.inbox.invocation import call_async, call_in_thread
from sagapost.inbox.message import Message
from sagapost.inbox.session import HandlerSessions

__all__ = ["Execution", "Progress", "Stage", "decode"]

Stage = Literal["claim", "handle", "commit"]


@dataclass(slots=True)
class Progress:
    """Where a transaction is; read when it ends from outside."""

    stage: Stage = "claim"
    handler: str = ""


def decode(message: Message) -> list[object]:
    """Decode the data for each handler, converting older versions.

    Done anew for each try: a handler may have changed what it was given.

    :raises DecodingError: if it does not fit a class, or a conversion fails.
    """
    return [_decode(call, message) for call in message.calls]


def _decode(call: Call, message: Message) -> object:
    event = message.event
    payload: object = decode_data(event.data, call.payload, event_id=event.id, event_type=event.type)
    for upcaster in call.upcasts:
        try:
            payload = upcaster.function(payload)
        except Exception as error:
            raise DecodingError(
                event_id=event.id,
                event_type=event.type,
                cls=upcaster.from_class,
                reason=f"its conversion to {upcaster.to_type!r} raised {type(error).__name__}",
            ) from error
    return payload


class Execution:
    """Handlers at work in one transaction, which is open and holds the dedup keys."""

    __slots__ = (
        "_connection",
        "_database",
        "_inbox",
        "_progress",
        "_session",
        "_sessions",
        "_threads",
        "_transaction",
    )

    def __init__(
        self,
        inbox: Inbox,
        database: Database,
        sessions: HandlerSessions,
        threads: anyio.CapacityLimiter,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
    ) -> None:
        self._inbox = inbox
        self._database = database
        self._sessions = sessions
        self._threads = threads
        self._connection = connection
        self._progress = progress
        self._session = sessions.open(outer)
        self._transaction = connection.get_transaction()
        progress.stage = "handle"

    def call(self, call: Call, payload: object, message: Message, attempt: int) -> None:
        """Call one handler and wait for it; raises what it raises."""
        inbox, handler, event = self._inbox, call.handler, message.event
        self._progress.handler = handler.name
        saga = continue_from(event)
        if handler.asynchronous:
            ctx = self._context(message, attempt)
            await_only(call_async(handler.function, payload, ctx, saga, inbox.around(event)))
        else:
            sync_ctx = inbox.sync_context(
                consumer=inbox.name,
                event=event,
                attempt=attempt,
                outbox=inbox.outbox,
                session=self._session.sync_session,
                topic=message.topic,
            )
            around = inbox.around(event)
            await_only(call_in_thread(handler.function, payload, sync_ctx, saga, around, self._threads))

    def call_instead(
        self, work: Callable[[Context], Awaitable[None]], name: str, message: Message, attempt: int
    ) -> None:
        """Call what is done in place of the handlers, and wait for it; raises what it raises."""
        inbox, event = self._inbox, message.event
        self._progress.handler = name
        ctx = self._context(message, attempt)

        async def instead(_payload: object, ctx: Context) -> None:
            await work(ctx)

        await_only(call_async(instead, None, ctx, continue_from(event), inbox.around(event)))

    def _context(self, message: Message, attempt: int) -> Context:
        inbox = self._inbox
        return inbox.context(
            consumer=inbox.name,
            event=message.event,
            attempt=attempt,
            outbox=inbox.outbox,
            session=self._session,
            topic=message.topic,
        )

    def write(self, event: Event | None = None) -> None:
        """Send what is pending to the database.

        :param event: the one that is handled, where it is one: what listeners of the flush publish is caused by it.
        :raises HandlerError: if a handler ended the transaction behind the session's back.
        """
        self._require_untouched()
        with self._database.undisturbed(), bind(None if event is None else continue_from(event)):
            self._session.sync_session.flush()

    def commit(self) -> None:
        """Commit everything, and close the session for good."""
        self._progress.stage = "commit"
        with self._database.undisturbed():
            self._sessions.commit(self._session)
            # A handler that never used its session left nothing in it to commit; the dedup key is on the connection.
            if self._connection.in_transaction():
                self._connection.commit()
            self._sessions.close(self._session)

    def undo(self) -> None:
        """Roll everything back, and close the session for good."""
        with self._database.undisturbed():
            self._sessions.close(self._session)
            if self._connection.in_transaction():
                self._connection.rollback()

    def _require_untouched(self) -> None:
        """Check that the transaction which holds the dedup keys is still the one that is open."""
        driver = self._connection.connection.driver_connection
        asked = getattr(driver, "is_in_transaction", None)
        open_there = asked() if callable(asked) else getattr(driver, "in_transaction", True)
        transaction = self._transaction
        if (
            open_there
            and transaction is not None
            and transaction.is_active
            and transaction is self._connection.get_transaction()
        ):
            return
        raise HandlerError(
            f"{self._progress.handler} ended the inbox's transaction through its connection or by a COMMIT or "
            "ROLLBACK of its own. What it wrote before may be committed without the events it published. Correct the "
            "handler, check what it wrote, then redrive or discard this message."
        )
