"""Groups with savepoints: what has arrived shares BEGIN and COMMIT, and nothing else.

Each message is claimed, handled and written within a savepoint of its own. What fails is undone to there, its claim
with it, and comes to its end alone after the commit of the others, which notice nothing; its handler's answer is kept,
and not asked for again. Where the transaction of all is lost (a conflict, a time limit, a commit that fails), each is
handled alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.databases import code_of
from sagapost.core.errors import DecodingError
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.handling import outcome_of_commit as commits
from sagapost.inbox.handling.execution import Execution, decode
from sagapost.inbox.handling.faults import kind_of
from sagapost.inbox.handling.guarded import EndedError, LateError, Progress, SwallowedError, contained, is_ours
from sagapost.inbox.handling.pace import BUDGET, Pace
from sagapost.inbox.handling.savepoints import Savepoints
from sagapost.inbox.handling.transaction import Toolbox
from sagapost.inbox.kept.database import Link

__all__ = ["SavepointGroups", "GroupWork"]

_NO_SAVEPOINT = frozenset({"3B001", "25P01"})


class _UndoneError(Exception):
    """The transaction of the group is lost, and with it what all have done (its cause says why)."""


@dataclass(slots=True)
class GroupWork:
    """What became of messages that work a transaction."""

    done: list[tuple[Message, Execution, float]] = field(default_factory=list[tuple[Message, Execution, float]])
    """Handled, with when each began; committed once `run` has returned."""
    left: list[Message] = field(default_factory=list[Message])
    """To be handled alone, in this order."""
    duplicates: int = 0
    culprit: Message | None = None
    """Its handlers run now; or, with `broken`, have ended the transaction of all."""
    undone: BaseException | None = None
    """Why the transaction of all was lost."""
    broken: EndedError | None = None
    """Nobody knows whether what is done was committed."""
    lanes: set[str] = field(default_factory=set[str])
    """Of those that are left: what comes after them in order is left too."""

    def leave(self, message: Message) -> None:
        """Let a message come to its end alone."""
        self.left.append(message)
        if message.lane is not None:
            self.lanes.add(message.lane)


class SavepointGroups:
    """Runs messages together that were delivered, for the first time."""

    def __init__(self, tools: Toolbox, pace: Pace) -> None:
        self._tools = tools
        self._pace = pace
        self._observer = tools.observer
        self._consumer = tools.inbox.name

    async def run(self, link: Link, messages: Sequence[Message]) -> GroupWork:
        """Handle messages, in their order; return those that have not come to their end.

        :raises StoreUnavailableError: if the database went away; as for `Transactions.run`.
        """
        work = GroupWork()
        try:
            await self._tools.guard.run(
                link, lambda connection, outer, progress: self._run(connection, outer, progress, messages, work)
            )
        except LateError as error:
            work.undone = error
        except EndedError as error:
            work.undone = work.broken = error
        if work.undone is None:
            return work
        self._observer.notify(obs.GroupUndone(self._consumer, len(messages), kind_of(work.undone)))
        self._pace.disturbed(messages)
        return work if work.broken is not None else GroupWork(left=list(messages))

    def found_committed(self, work: GroupWork) -> None:
        """Report as handled what the handler that ended the transaction has committed."""
        for message, _, began in work.done:
            self._notify_handled(message, began)

    def _notify_handled(self, message: Message, began: float) -> None:
        event = message.event
        lag = (self._tools.clock.now() - event.time).total_seconds()
        self._observer.notify(
            obs.Handled(self._consumer, event.id, event.type, time.perf_counter() - began, lag_seconds=lag)
        )

    # --- in the greenlet ---

    def _run(
        self,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
        messages: Sequence[Message],
        work: GroupWork,
    ) -> None:
        self._observer.notify(obs.GroupStarted(self._consumer, len(messages)))
        savepoints, until = Savepoints(connection), time.perf_counter() + BUDGET
        try:
            for message in messages:
                if message.lane in work.lanes or time.perf_counter() > until:
                    work.leave(message)
                    continue
                execution = self._claim(connection, outer, progress, savepoints, message, work)
                if execution is not None:
                    self._handle(execution, progress, message, work)
            self._commit(connection, progress, savepoints, work)
        except _UndoneError as undone:
            work.undone = undone.__cause__ or undone
            with self._tools.database.undisturbed():
                for _, execution, _ in work.done:
                    execution.close()
                if connection.in_transaction():
                    connection.rollback()

    def _claim(
        self,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
        savepoints: Savepoints,
        message: Message,
        work: GroupWork,
    ) -> Execution | None:
        """Claim a message within a savepoint; None: it cannot be, or need not be, handled here."""
        event, tools, progress.stage = message.event, self._tools, "claim"
        self._observer.notify(obs.Started(self._consumer, event.id, event.type, message.attempts + 1))
        with tools.database.undisturbed():
            try:
                written = savepoints.next(tools.claims.in_plain(message))
                claim = tools.claims.claim(connection, message, written=written)
                if claim == "claimed":
                    self._observer.notify(obs.Claimed(self._consumer, event.id))
                    return tools.execution(connection, outer, progress, savepoints)
                savepoints.undo()
            except SQLAlchemyError as error:
                self._judge(error, savepoints, work)
                claim = None
        if claim is None and message.lane not in work.lanes:
            return self._claim(connection, outer, progress, savepoints, message, work)
        if claim is None or claim == "behind":
            work.leave(message)
        else:
            work.duplicates += 1
            self._observer.notify(obs.Duplicate(self._consumer, event.id, event.type))
        return None

    def _judge(self, error: SQLAlchemyError, savepoints: Savepoints, work: GroupWork) -> None:
        """Find out what an error of our own statements means; return if it is seen to.

        A driver's error that the last handler has swallowed, unseen by SQLAlchemy, fails the next statement: that
        handler has failed.

        :raises EndedError: the last handler has ended the transaction, and begun another.
        """
        kit = self._tools.database.kit
        if commits.is_aftermath(error) and work.done:
            message, execution, _ = work.done.pop()
            savepoints.undo()
            message.raised = execution.swallowed()
            execution.close()
            work.leave(message)
            return
        gone = code_of(error) in _NO_SAVEPOINT or (kit.one_writer and not kit.is_outage(error))
        if gone and work.done:
            work.culprit, execution, _ = work.done.pop()
            raise execution.has_ended() from error
        if kit.is_outage(error):
            raise error
        # A conflict; or something that a handler has set in the transaction, which it keeps to itself alone.
        raise _UndoneError from error

    def _handle(self, execution: Execution, progress: Progress, message: Message, work: GroupWork) -> None:
        event, began = message.event, time.perf_counter()
        work.culprit = message
        try:
            payloads = decode(message)
            for call, payload in zip(message.calls, payloads, strict=True):
                message.failing = call
                execution.handle(call, payload, message, message.attempts + 1)
                if len(payloads) > 1:
                    execution.write_for(event)
                self._observer.notify(obs.HandlerReturned(self._consumer, event.id, call.handler.name))
            message.failing = None
            execution.write_for(event)
            execution.keep()
            self._observer.notify(obs.Written(self._consumer, event.id))
        except BaseException as raised:
            cause = execution.failure(raised)
            if isinstance(cause, EndedError):
                raise cause from None
            if progress.lost or self._tools.database.kit.is_conflict(cause):
                raise _UndoneError from cause
            if not isinstance(cause, DecodingError):
                message.raised = cause
            work.leave(message)
        else:
            work.done.append((message, execution, began))
        work.culprit = None
        self._pace.took(message, time.perf_counter() - began)

    def _commit(self, connection: Connection, progress: Progress, savepoints: Savepoints, work: GroupWork) -> None:
        """Commit what is done, and believe it only if the database says so."""
        if work.done:
            try:
                savepoints.release()
            except SQLAlchemyError as error:
                self._judge(error, savepoints, work)
        if not work.done:
            if connection.in_transaction():
                connection.rollback()
            return
        progress.stage = "commit"
        try:
            with self._tools.database.undisturbed():
                answer = commits.watch(connection)
                connection.commit()
        except SQLAlchemyError as error:
            if self._tools.database.kit.is_outage(error):
                raise
            raise _UndoneError from error
        if answer.rolled_back:
            raise _UndoneError from SwallowedError("The database has rolled the group back in place of committing it.")
        self._observer.notify(obs.GroupCommitted(self._consumer, len(work.done)))
        for message, execution, began in work.done:
            self._conclude(message, execution, began, work)

    def _conclude(self, message: Message, execution: Execution, began: float, work: GroupWork) -> None:
        try:
            execution.committed()
        except BaseException as error:
            if is_ours(error):
                raise
            # Of a listener of the session's. Alone it finds out that it is done.
            message.raised = contained(error)
            work.leave(message)
        else:
            self._notify_handled(message, began)
