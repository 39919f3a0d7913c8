"""Guarded execution: a user's function in a transaction of ours, whatever the function does.

Handlers, last resorts and compensations run in it. What comes out of them is a failure of theirs, be it an error, a
`SystemExit` or a cancellation nobody asked for; what they leave behind is looked at before anything is committed, and
COMMIT is believed only if the database says that it was one. Recording a failure is the caller's, in a transaction of
its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import anyio
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.util import await_only  # 2.1 calls it await_; the old name is in 2.0 as well

from sagapost.core.errors import HandlerError, StoreUnavailableError
from sagapost.inbox.handling import outcome_of_commit as commits
from sagapost.inbox.handling.faults import text_of
from sagapost.inbox.handling.savepoints import Savepoints
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.handling.time_limit import Limit, time_limit
from sagapost.inbox.kept.database import Database, Link

__all__ = [
    "ConnectionLostError",
    "EndedError",
    "EscapedError",
    "Guard",
    "GuardError",
    "GuardedTransaction",
    "LateError",
    "LostError",
    "Progress",
    "Stage",
    "SwallowedError",
    "contained",
    "is_ours",
    "sole",
]

T = TypeVar("T")

Stage = Literal["claim", "handle", "commit"]


class GuardError(Exception):
    """What the guard itself has to say about a function; a sentence that stands alone."""


class EscapedError(GuardError):
    """The function raised what ends tasks and processes (its cause), though nobody had asked for that."""


class SwallowedError(GuardError):
    """A statement failed (its cause), the function went on, and the database has undone the whole transaction."""


class LateError(GuardError):
    """The function did not return within its time limit."""


class EndedError(HandlerError):
    """The function ended the transaction, or closed its connection: part of it may be committed."""


class ConnectionLostError(StoreUnavailableError):
    """The database went away while users' functions ran or were committed. One of them may be why."""


class LostError(GuardError, ConnectionError):
    """The transaction's connection ended under the function."""


@dataclass(slots=True)
class Progress:
    """Where a transaction is; read when it ends from outside."""

    stage: Stage = "claim"
    function: str = ""
    """What is running, for people."""
    limit: Limit = field(default_factory=Limit)
    """Its time limit."""
    lost: bool = False
    """Something failed that may mean the database is away, or only this connection."""
    transaction: GuardedTransaction | None = None


def sole(error: BaseException) -> BaseException:
    """Return the one exception in a group of one: a function that uses a task group raises its errors so."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def is_ours(error: BaseException) -> bool:
    """Return whether an error is our own cancellation."""
    return isinstance(error, anyio.get_cancelled_exc_class()) and _cancelled_by_us()


def _cancelled_by_us() -> bool:
    """Return whether a scope around the running function was cancelled.

    Our functions run in task groups: who cancels the task around them cancels such a scope.
    """
    return anyio.current_effective_deadline() == -math.inf


async def _take_back(task: asyncio.Task[Any], cancelling: int) -> None:
    """Take back what a function did to the task that it ran in, which is ours and goes on."""
    with suppress(asyncio.CancelledError):
        # If it has not been raised yet, it is raised here.
        await asyncio.sleep(0)
    while task.cancelling() > cancelling:
        task.uncancel()


def contained(error: BaseException) -> Exception:
    """Return an error as one that ends nothing but what raised it."""
    if isinstance(error, Exception):
        return error
    escaped = EscapedError(
        f"It raised {text_of(error)}, which ends tasks and processes. Nobody has asked for that here, so it counts as "
        "an error."
    )
    escaped.__cause__ = error
    return escaped


class Guard:
    """Runs work that has users' code in it, on the connection of a link and within a time limit."""

    def __init__(self, database: Database, limit: float, *, setting: str) -> None:
        self._database = database
        self._limit = limit
        self._setting = setting
        """What sets the limit, for people."""
        commits.note_errors_of(database.engine)

    async def run(self, link: Link, work: Callable[[Connection, AsyncConnection, Progress], T]) -> T:
        """Run `work` in a greenlet of SQLAlchemy's; it begins transactions and ends them.

        :raises LateError: if users' code did not return in time. Nothing of it is committed.
        :raises EndedError: the same, and before that it had ended the transaction.
        :raises StoreUnavailableError: if the database went away. Nothing is done, or (rarely, if it went during the
            commit) everything is. If users' functions had begun it is a `ConnectionLostError`.
        """
        database, progress = self._database, Progress()
        async with database.turn():
            connection = await link.get()
            try:
                async with time_limit(self._limit, once=not database.kit.one_writer) as progress.limit:
                    done = await connection.run_sync(work, connection, progress)
            except TimeoutError as error:
                late = self._late(progress)
                await link.give_back(broken=True)
                if progress.stage != "handle":
                    raise self._unavailable(error, progress) from error
                raise late from None
            except BaseException as error:
                # Cancelled, or the database failed a statement of ours: what the connection is in, nobody knows.
                await link.give_back(broken=True)
                if isinstance(error, SQLAlchemyError | OSError | EOFError):
                    raise self._unavailable(error, progress) from error
                raise
        if progress.lost:
            # The database may be gone, or this connection, or one that only the function knows: a fresh connection
            # tells them apart.
            await link.give_back(broken=True)
            try:
                await database.ping()
            except StoreUnavailableError as away:
                raise ConnectionLostError(str(away)) from away
        return done

    def _unavailable(self, error: BaseException, progress: Progress) -> StoreUnavailableError:
        unavailable = self._database.unavailable(error)
        # Before a function ran, only a statement of ours can have failed.
        return unavailable if progress.stage == "claim" else ConnectionLostError(str(unavailable))

    def _late(self, progress: Progress) -> Exception:
        if progress.transaction is not None and (ended := progress.transaction.ended()) is not None:
            return ended
        return LateError(
            f"{progress.function} did not return within {self._limit:g} seconds. Raise {self._setting}, or make it "
            "faster; its transaction was rolled back."
        )


class GuardedTransaction:
    """A transaction that is open, and the session that users' functions are handed in it.

    Made and used in the greenlet that SQLAlchemy's core was entered in. With savepoints it is the part of the
    transaction that is within the one that is set: what fails is undone to there, and what is done is kept for whoever
    commits the whole, and says so with `committed`.
    """

    __slots__ = ("_connection", "_database", "_progress", "_savepoints", "_sessions", "_transaction", "session")

    def __init__(
        self,
        database: Database,
        sessions: HandlerSessions,
        connection: Connection,
        outer: AsyncConnection,
        progress: Progress,
        savepoints: Savepoints | None = None,
    ) -> None:
        self._database = database
        self._savepoints = savepoints
        self._sessions = sessions
        self._connection = connection
        self._progress = progress
        self._transaction = connection.get_transaction()
        commits.begin_noting(connection)
        self.session: AsyncSession = sessions.open(outer, joined=savepoints is not None)
        progress.transaction, progress.stage = self, "handle"

    def call(self, name: str, function: Awaitable[T]) -> T:
        """Wait for a user's function; raises what it raises.

        :raises TimeoutError: if it swallowed that its time was up.
        """
        progress, task = self._progress, asyncio.current_task()
        progress.function = name
        cancelling = task.cancelling() if task is not None else 0
        try:
            result = await_only(function)
        finally:
            if task is not None and task.cancelling() > cancelling:
                self._let_go(task, cancelling)
        if progress.limit.expired():
            raise TimeoutError
        return result

    def _let_go(self, task: asyncio.Task[Any], cancelling: int) -> None:
        if not self._progress.limit.expired() and not _cancelled_by_us():
            await_only(_take_back(task, cancelling))

    def write(self) -> None:
        """Send what is pending to the database.

        :raises EndedError: if a function ended the transaction, or closed its connection.
        :raises SwallowedError: if a statement failed and the function went on.
        """
        self._require_sound()
        with self._database.undisturbed():
            self.session.sync_session.flush()

    def commit(self) -> None:
        """Commit everything that was written, and close the session for good.

        :raises SwallowedError: if the database rolled back instead.
        """
        connection = self._connection
        self._progress.stage = "commit"
        with self._database.undisturbed():
            answer = commits.watch(connection)
            self._sessions.commit(self.session)
            # A function that never used its session left nothing in it to commit; what was claimed is on the
            # connection.
            if connection.in_transaction():
                connection.commit()
            if answer.rolled_back:
                raise self.swallowed()
            self._sessions.close(self.session)

    def keep(self) -> None:
        """Do what comes before a commit, so that nothing can fail in the session after it."""
        with self._database.undisturbed():
            self._sessions.prepare(self.session)

    def committed(self) -> None:
        """Take note that the whole transaction is committed, and close the session for good."""
        self._sessions.commit(self.session)
        self._sessions.close(self.session)

    def close(self) -> None:
        """Close the session for good; what was done within a savepoint is undone with the whole."""
        self._sessions.close(self.session)

    def failure(self, raised: BaseException) -> Exception:
        """Undo everything, close the session for good, and return what the functions failed with.

        Raises `raised` again where it is none of theirs: our own cancellation, or a commit that may have been done
        before the connection was lost.
        """
        cause = sole(raised)
        if commits.is_aftermath(cause):
            cause = self.swallowed()
        late = self._progress.limit.expired() and isinstance(cause, asyncio.CancelledError | TimeoutError)
        if late or is_ours(cause):
            raise raised
        unsure = self._database.concerns(cause) or isinstance(cause, LostError)
        if unsure and self._progress.stage == "commit":
            # Whoever runs it again finds out by what was claimed.
            raise raised
        self._progress.lost = unsure
        handling = self._progress.stage == "handle" and not unsure
        ended = self.ended(after=cause) if handling and not isinstance(cause, EndedError) else None
        self._undo()
        if ended is not None:
            return ended
        return contained(cause)

    def ended(self, after: BaseException | None = None) -> EndedError | None:
        """Return the error for a transaction that a function has ended; None if it is still open.

        :param after: what the function raised then.
        """
        connection, transaction = self._connection, self._transaction
        then = "" if after is None else f" Then it raised {text_of(after)}."
        if connection.closed:
            return EndedError(
                f"{self._progress.function} closed the connection of the transaction that it ran in, which is not its "
                f"own. Leave the call out; for a connection of your own ask your engine.{then}"
            )
        if connection.invalidated or commits.undoes_by_itself(connection, after):
            # A statement that is cut off ends the connection, and with it the transaction.
            return None
        if not self.session.sync_session.is_active:
            # A flush failed: SQLAlchemy has rolled the transaction back, so nothing of it can be committed.
            return None
        ours = transaction is not None and transaction.is_active and transaction is connection.get_transaction()
        if ours and commits.is_open(connection):
            return None
        return self.has_ended(then)

    def has_ended(self, then: str = "") -> EndedError:
        """Return the error for a transaction that the last function is known to have ended.

        :param then: a sentence more.
        """
        return EndedError(
            f"{self._progress.function} ended the transaction it ran in, through its connection or by a COMMIT or "
            "ROLLBACK of its own. What it wrote before may be committed without the events it published. Correct it, "
            f"and check what it wrote before it runs again.{then}"
        )

    def _undo(self) -> None:
        connection = self._connection
        with self._database.undisturbed():
            if connection.closed:
                # Given back to its pool by the function: nothing of ours is open there any more.
                self.session.sync_session.expunge_all()
                return
            if not connection.invalidated and commits.is_lost(connection):
                # Nothing can be rolled back on it any more: the server does.
                connection.invalidate()
            self._sessions.close(self.session)
            if self._savepoints is None:
                if connection.in_transaction():
                    connection.rollback()
            elif not self._progress.lost and self.ended() is None:
                self._savepoints.undo()

    def _require_sound(self) -> None:
        if (ended := self.ended()) is not None:
            raise ended
        if commits.is_lost(self._connection):
            raise LostError(
                f"The database connection of {self._progress.function} was closed while it ran: by the server (look "
                "for idle_in_transaction_session_timeout, if it took long), or by itself."
            )
        if not self.session.sync_session.is_active or commits.has_failed(self._connection):
            raise self.swallowed()

    def swallowed(self) -> SwallowedError:
        """Return the error for a function that went on after a statement had failed."""
        noted = commits.noted_error(self._connection)
        what = "A statement failed" if noted is None else f"A statement failed ({text_of(noted)})"
        error = SwallowedError(
            f"{what} and {self._progress.function} went on, so the database has undone everything in the transaction. "
            "Let the error out, or put the statement into session.begin_nested()."
        )
        error.__cause__ = noted
        return error
