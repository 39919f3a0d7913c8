"""One message, one transaction: claim the dedup key, run the handlers, write what they published, commit.

All of it runs in one greenlet, so that the synchronous core of SQLAlchemy is entered once per message and not once per
call; what a handler awaits is awaited in the consumer's own task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import anyio
from sqlalchemy import Connection, RootTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.util import await_only  # 2.1 calls it await_; the old name is in 2.0 as well

from sagapost.core.clock import Clock
from sagapost.core.codec import decode_data
from sagapost.core.context import SagaContext, bind, continue_from
from sagapost.core.errors import DecodingError, HandlerError
from sagapost.core.observer import Observer
from sagapost.inbox import observations as obs
from sagapost.inbox.claims import Claims
from sagapost.inbox.database import Database, Link, concerns_availability, is_conflict
from sagapost.inbox.handlers import Call
from sagapost.inbox.inbox import Inbox
from sagapost.inbox.invocation import call_async, call_in_thread
from sagapost.inbox.message import Message
from sagapost.inbox.outcomes import (
    Behind,
    BusinessFailed,
    BusinessFailure,
    Duplicate,
    Failed,
    Handled,
    Outcome,
    Refused,
    Reject,
    Rejected,
    Retry,
    RetryLater,
)
from sagapost.inbox.session import HandlerSessions

__all__ = ["Transactions"]


@dataclass(slots=True)
class _Progress:
    """Where a transaction is; read when it ends from outside."""

    stage: Literal["claim", "handle", "commit"] = "claim"
    handler: str = ""


class Transactions:
    """Runs messages, each in a transaction of its own."""

    def __init__(
        self,
        inbox: Inbox,
        database: Database,
        claims: Claims,
        sessions: HandlerSessions,
        observer: Observer,
        clock: Clock,
        *,
        timeout: float,
        threads: anyio.CapacityLimiter,
    ) -> None:
        self._inbox = inbox
        self._database = database
        self._claims = claims
        self._sessions = sessions
        self._observer = observer
        self._clock = clock
        self._timeout = timeout
        self._threads = threads

    async def run(self, link: Link, message: Message, *, attempt: int) -> Outcome:
        """Handle a message once.

        :raises StoreUnavailableError: if the database went away. Nothing is done, or (rarely, if it went during the
            commit) everything is; running the message again finds out by itself.
        """
        async with self._database.turn():
            connection = await link.get()
            progress = _Progress()
            try:
                with anyio.fail_after(self._timeout):
                    outcome = await connection.run_sync(self._run, connection, message, attempt, progress)
            except TimeoutError as error:
                await link.give_back(broken=True)
                if progress.stage != "handle":
                    raise self._database.unavailable(error) from error
                late = HandlerError(
                    f"{progress.handler or 'The handler'} did not return within {self._timeout:g} seconds. "
                    "Raise ConsumerSettings.handler_timeout, or make it faster; its transaction was rolled back."
                )
                return Failed(late)
            except BaseException as error:
                # Cancelled, or the database failed a statement of ours: what the connection is in, nobody knows.
                await link.give_back(broken=True)
                if isinstance(error, SQLAlchemyError | OSError | EOFError):
                    raise self._database.unavailable(error) from error
                raise
        if isinstance(outcome, Failed) and concerns_availability(outcome.error):
            # Ours may be gone, or a database that only the handler knows: a fresh connection tells them apart.
            await link.give_back(broken=True)
            await self._database.ping()
        return outcome

    # --- in the greenlet ---

    def _run(
        self, connection: Connection, outer: AsyncConnection, message: Message, attempt: int, progress: _Progress
    ) -> Outcome:
        event = message.event
        try:
            payloads = [_decode(call, message) for call in message.calls]
        except DecodingError as error:
            return Refused("undecodable", str(error))
        began = time.perf_counter()
        self._observer.notify(obs.Started(self._inbox.name, event.id, event.type, attempt))
        refusal = self._claim(connection, message)
        if refusal is not None:
            return refusal
        session = self._sessions.open(outer)
        transaction = connection.get_transaction()
        saga = continue_from(event)
        try:
            progress.stage = "handle"
            for call, payload in zip(message.calls, payloads, strict=True):
                progress.handler = call.handler.name
                self._call(call, payload, message, session, saga, attempt)
                self._observer.notify(obs.HandlerReturned(self._inbox.name, event.id, call.handler.name))
            _require_untouched(connection, transaction, progress.handler)
            session.sync_session.flush()
            self._observer.notify(obs.Written(self._inbox.name, event.id))
            progress.stage = "commit"
            self._commit(connection, session)
        except BusinessFailure as failure:
            self._undo(connection, session)
            return self._publish_failure(connection, message, failure, saga, began, progress)
        except Retry as retry:
            self._undo(connection, session)
            return RetryLater(retry.after, retry.reason)
        except Reject as reject:
            self._undo(connection, session)
            return Rejected(reject.reason)
        except HandlerError as error:
            self._undo(connection, session)
            return Refused("broke-contract", str(error))
        except Exception as error:
            if progress.stage == "commit" and concerns_availability(error):
                # It may have been committed; whoever runs it again finds the dedup key, or does not.
                raise
            self._undo(connection, session)
            return Failed(error, conflict=is_conflict(error))
        self._notify_handled(message, began)
        return Handled()

    def _claim(self, connection: Connection, message: Message) -> Outcome | None:
        """Begin the transaction by claiming the message; return why not, if it cannot be."""
        try:
            claim = self._claims.claim(connection, message)
        except SQLAlchemyError as error:
            if not is_conflict(error):
                raise
            connection.rollback()
            return Failed(error, conflict=True)
        event = message.event
        if claim == "claimed":
            self._observer.notify(obs.Claimed(self._inbox.name, event.id))
            return None
        connection.rollback()
        if claim == "behind":
            return Behind()
        self._observer.notify(obs.Duplicate(self._inbox.name, event.id, event.type))
        return Duplicate()

    def _call(
        self, call: Call, payload: object, message: Message, session: AsyncSession, saga: SagaContext, attempt: int
    ) -> None:
        inbox, handler = self._inbox, call.handler
        if handler.asynchronous:
            ctx = inbox.context(
                consumer=inbox.name, event=message.event, attempt=attempt, outbox=inbox.outbox, session=session
            )
            await_only(call_async(handler.function, payload, ctx, saga))
        else:
            sync_ctx = inbox.sync_context(
                consumer=inbox.name,
                event=message.event,
                attempt=attempt,
                outbox=inbox.outbox,
                session=session.sync_session,
            )
            await_only(call_in_thread(handler.function, payload, sync_ctx, saga, self._threads))

    def _commit(self, connection: Connection, session: AsyncSession) -> None:
        self._sessions.commit(session)
        # A handler that never used its session left nothing in it to commit; the dedup key is on the connection.
        if connection.in_transaction():
            connection.commit()
        self._sessions.close(session)

    def _undo(self, connection: Connection, session: AsyncSession) -> None:
        self._sessions.close(session)
        if connection.in_transaction():
            connection.rollback()

    def _publish_failure(
        self,
        connection: Connection,
        message: Message,
        failure: BusinessFailure,
        saga: SagaContext,
        began: float,
        progress: _Progress,
    ) -> Outcome:
        """Commit the dedup key with the failure event, in a second transaction.

        In place of a savepoint, which would cost every message a round trip for the sake of the few that fail. If
        somebody else has handled the message in between, that stands, and this failure was never more than an attempt.
        """
        progress.stage = "claim"
        refusal = self._claim(connection, message)
        if refusal is not None:
            return refusal
        progress.stage = "handle"
        outbox = self._inbox.outbox
        if outbox is None:
            connection.rollback()
            return Refused(
                "broke-contract",
                f"The handler raised BusinessFailure, but the inbox {self._inbox.name!r} has no outbox to publish "
                "the failure event through. Make it with Inbox(..., outbox=Outbox(source=...)).",
            )
        try:
            with bind(saga):
                options = failure.options
                options.setdefault("key", message.event.partitionkey)
                published = outbox.publish(connection, failure.event, **options)
            self._observer.notify(obs.Written(self._inbox.name, message.event.id))
            progress.stage = "commit"
            connection.commit()
        except Exception as error:
            if concerns_availability(error):
                raise
            connection.rollback()
            return Failed(error, conflict=is_conflict(error))
        self._notify_handled(message, began, failure=published.type)
        return BusinessFailed(published.type)

    def _notify_handled(self, message: Message, began: float, *, failure: str | None = None) -> None:
        event = message.event
        self._observer.notify(
            obs.Handled(
                self._inbox.name,
                event.id,
                event.type,
                seconds=time.perf_counter() - began,
                lag_seconds=(self._clock.now() - event.time).total_seconds(),
                failure=failure,
            )
        )


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


def _require_untouched(connection: Connection, transaction: RootTransaction | None, handler: str) -> None:
    """Check that the transaction which holds the dedup key is still the one that is open.

    :raises HandlerError: if the handler ended it behind the session's back.
    """
    driver = connection.connection.driver_connection
    in_transaction = getattr(driver, "is_in_transaction", None)
    open_there = in_transaction() if callable(in_transaction) else getattr(driver, "in_transaction", True)
    if (
        connection.get_transaction() is transaction
        and transaction is not None
        and transaction.is_active
        and open_there
    ):
        return
    raise HandlerError(
        f"{handler} ended the inbox's transaction through its connection or by a COMMIT or ROLLBACK of its own. What "
        "it wrote before may be committed without the events it published. Correct the handler, check what it wrote, "
        "then redrive or discard this message."
    )
