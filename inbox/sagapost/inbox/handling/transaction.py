"""One message, one transaction: claim the dedup key, run the handlers, write what they published, commit.

All of it runs in one greenlet, so that the synchronous core of SQLAlchemy is entered once per message and not once per
call; what a handler awaits is awaited in the consumer's own task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.clock import Clock
from sagapost.core.context import bind, continue_from
from sagapost.core.errors import DecodingError, HandlerError
from sagapost.core.observer import Observer
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.outcomes import (
    AskedFor,
    Behind,
    BusinessFailure,
    Done,
    DoneBefore,
    Failed,
    Instead,
    Outcome,
    Unprocessable,
)
from sagapost.inbox.handling.execution import Execution, decode
from sagapost.inbox.handling.faults import text_of
from sagapost.inbox.handling.guarded import Guard, LateError, LostError, Progress, contained, is_ours
from sagapost.inbox.handling.pace import Pace
from sagapost.inbox.handling.savepoints import Savepoints
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.kept.claims import Claims
from sagapost.inbox.kept.database import Database, Link

__all__ = ["Toolbox", "Transactions"]


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What transactions are made of; one per consumer."""

    inbox: Inbox
    database: Database
    claims: Claims
    sessions: HandlerSessions
    observer: Observer
    clock: Clock
    guard: Guard
    threads: anyio.CapacityLimiter
    pace: Pace

    def execution(
        self,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
        savepoints: Savepoints | None = None,
    ) -> Execution:
        """Begin to run handlers in the open transaction; with savepoints, within the one that is set."""
        return Execution(
            self.inbox, self.database, self.sessions, self.threads, connection, outer, progress, savepoints
        )


class Transactions:
    """Runs messages, each in a transaction of its own."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._observer = tools.observer
        self._consumer = tools.inbox.name

    async def run(self, link: Link, message: Message, *, attempt: int, instead: Instead | None = None) -> Outcome:
        """Handle a message once.

        :param instead: do this in place of what the handlers do.
        :raises StoreUnavailableError: if the database went away. Nothing is done, or (rarely, if it went during the
            commit) everything is; running the message again finds out by itself.
        """
        try:
            return await self._tools.guard.run(
                link,
                lambda connection, outer, progress: self._run(connection, outer, message, attempt, progress, instead),
            )
        except LateError as late:
            return Failed(late)
        except HandlerError as broken:
            return Unprocessable("broke-contract", text_of(broken))

    # --- in the greenlet ---

    def _run(
        self,
        connection: Connection,
        outer: AsyncConnection,
        message: Message,
        attempt: int,
        progress: Progress,
        instead: Instead | None,
    ) -> Outcome:
        if instead is not None:
            return self._run_instead(connection, outer, message, instead, attempt, progress)
        answer, message.raised = message.raised, None
        if answer is not None:
            # Tried just now, in a group: this is what came of it.
            return self._conclude(connection, outer, message, answer, time.perf_counter(), attempt, progress)
        event, message.failing = message.event, None
        try:
            payloads = decode(message)
        except DecodingError as error:
            return Unprocessable("undecodable", str(error))
        began = time.perf_counter()
        self._observer.notify(obs.Started(self._consumer, event.id, event.type, attempt))
        refusal = self._claim(connection, message)
        if refusal is not None:
            return refusal
        execution, called = self._tools.execution(connection, outer, progress), time.perf_counter()
        try:
            for call, payload in zip(message.calls, payloads, strict=True):
                message.failing = call
                execution.handle(call, payload, message, attempt)
                if len(payloads) > 1:
                    # So that what it wrote fails as its own.
                    execution.write_for(event)
                self._observer.notify(obs.HandlerReturned(self._consumer, event.id, call.handler.name))
            message.failing = None
            execution.write_for(event)
            self._tools.pace.took(message, time.perf_counter() - called)
            self._observer.notify(obs.Written(self._consumer, event.id))
            execution.commit()
        except BaseException as raised:
            cause = execution.failure(raised)
            self._tools.pace.took(message, time.perf_counter() - called)
            if isinstance(cause, LostError) and not message.losses:
                # The server may be restarting. If it happens to this message again, the message is to blame.
                raise cause from None
            return self._conclude(connection, outer, message, cause, began, attempt, progress)
        self._notify_handled(message, began)
        return Done()

    def _conclude(
        self,
        connection: Connection,
        outer: AsyncConnection,
        message: Message,
        cause: Exception,
        began: float,
        attempt: int,
        progress: Progress,
    ) -> Outcome:
        """Do what a handler has asked for by what it raised; its own work is undone."""
        if isinstance(cause, AskedFor):
            return cause
        match cause:
            case BusinessFailure():
                return self._publish_failure(connection, message, cause, began, progress)
            case Instead():
                progress.stage = "claim"
                return self._run_instead(connection, outer, message, cause, attempt, progress)
            case _:
                return self._failed(cause)

    def _claim(self, connection: Connection, message: Message) -> Outcome | None:
        """Begin the transaction by claiming the message; return why not, if it cannot be."""
        event = message.event
        with self._tools.database.undisturbed():
            try:
                claim = self._tools.claims.claim(connection, message)
            except SQLAlchemyError as error:
                if not self._tools.database.kit.is_conflict(error):
                    raise
                connection.rollback()
                return Failed(error, conflict=True)
            if claim == "claimed":
                self._observer.notify(obs.Claimed(self._consumer, event.id))
                return None
            connection.rollback()
        if claim == "behind":
            return Behind()
        self._observer.notify(obs.Duplicate(self._consumer, event.id, event.type))
        return DoneBefore()

    def _publish_failure(
        self, connection: Connection, message: Message, failure: BusinessFailure, began: float, progress: Progress
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
        outbox = self._tools.inbox.outbox
        if outbox is None:
            connection.rollback()
            return Unprocessable(
                "broke-contract",
                f"The handler raised BusinessFailure, but the inbox {self._consumer!r} has no outbox to publish the "
                "failure event through. Make it with Inbox(..., outbox=Outbox(source=...)).",
            )
        try:
            with bind(continue_from(message.event)):
                options = failure.options
                options.setdefault("key", message.event.partitionkey)
                published = outbox.publish(connection, failure.event, **options)
            self._observer.notify(obs.Written(self._consumer, message.event.id))
            progress.stage = "commit"
            connection.commit()
        except BaseException as error:
            if is_ours(error) or self._tools.database.concerns(error):
                raise
            connection.rollback()
            return self._failed(contained(error))
        self._notify_handled(message, began, failure=published.type)
        return Done()

    def _run_instead(
        self,
        connection: Connection,
        outer: AsyncConnection,
        message: Message,
        instead: Instead,
        attempt: int,
        progress: Progress,
    ) -> Outcome:
        """Commit the dedup key with what is done in place of the handlers, in a transaction of its own."""
        began = time.perf_counter()
        refusal = self._claim(connection, message)
        if refusal is not None:
            return refusal
        execution = self._tools.execution(connection, outer, progress)
        try:
            execution.handle_instead(instead.work, instead.reason, message, attempt)
            execution.write_for(message.event)
            self._observer.notify(obs.Written(self._consumer, message.event.id))
            execution.commit()
        except BaseException as raised:
            return self._failed(execution.failure(raised))
        self._notify_handled(message, began)
        return Done()

    def _notify_handled(self, message: Message, began: float, *, failure: str | None = None) -> None:
        event = message.event
        self._observer.notify(
            obs.Handled(
                self._consumer,
                event.id,
                event.type,
                seconds=time.perf_counter() - began,
                lag_seconds=(self._tools.clock.now() - event.time).total_seconds(),
                failure=failure,
            )
        )

    def _failed(self, cause: Exception) -> Outcome:
        if isinstance(cause, HandlerError):
            return Unprocessable("broke-contract", text_of(cause))
        return Failed(cause, conflict=self._tools.database.kit.is_conflict(cause))
