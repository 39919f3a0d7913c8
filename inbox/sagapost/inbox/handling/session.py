"""The session a handler works with: bound to the inbox's connection, and not the handler's to end."""

from __future__ import annotations

from typing import Any, NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from sagapost.core.errors import HandlerError
from sagapost.outbox import Outbox
from sagapost.outbox.aggregates import captures

__all__ = ["HandlerSessions"]


def _refuse(call: str) -> NoReturn:
    raise HandlerError(
        f"The handler called session.{call}(). The inbox ends the transaction, together with the dedup key and the "
        "published events: leave the call out. For a part that may be undone use session.begin_nested(); to undo "
        "everything raise BusinessFailure, Retry or Reject."
    )


class HandlerSessions:
    """Makes sessions for handlers, of the kind the user's session factory makes.

    :param factory: the user's; its classes and options are kept, its bind is replaced by the inbox's connection.
    :param outbox: publishes what aggregates record in these sessions, unless the factory or its class of sessions
        was given to another outbox's `capture`.
    """

    def __init__(self, factory: async_sessionmaker[Any] | None, outbox: Outbox | None) -> None:
        options: dict[str, Any] = dict(factory.kw) if factory is not None else {"expire_on_commit": False}
        self._class: type[AsyncSession] = factory.class_ if factory is not None else AsyncSession
        self._ended = options.pop("sync_session_class", None) or self._class.sync_session_class
        for replaced in ("bind", "binds", "join_transaction_mode", "close_resets_only"):
            options.pop(replaced, None)
        self._options = options
        self._guarded = _guarded(self._ended)
        if outbox is not None and not captures(self._ended):
            # On the class, once: what the factory's own sessions carry in their `info` goes before it.
            outbox.capture(self._guarded)

    def open(self, connection: AsyncConnection, *, joined: bool = False) -> AsyncSession:
        """Return a session in the transaction of `connection`; `joined`: which goes on after it."""
        return self._class(
            bind=connection,
            sync_session_class=self._guarded,
            # What `commit` below commits is the connection's transaction itself, unless others share it.
            join_transaction_mode="rollback_only" if joined else "control_fully",
            # A handler that keeps its session for later gets an error then, not a transaction nobody ends.
            close_resets_only=False,
            **self._options,
        )

    def prepare(self, session: AsyncSession) -> None:
        """Run the listeners that come before a commit, and flush. In a greenlet of SQLAlchemy's."""
        sync = session.sync_session
        transaction = sync.get_transaction() or sync.begin()
        # It is public for two-phase sessions only.
        transaction._prepare_impl()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def commit(self, session: AsyncSession) -> None:
        """Commit, with the session's own events. In a greenlet of SQLAlchemy's."""
        self._ended.commit(session.sync_session)

    def close(self, session: AsyncSession) -> None:
        """Close for good; rolls back what is open. In a greenlet of SQLAlchemy's."""
        self._ended.close(session.sync_session)


def _guarded(session_class: type[Session]) -> type[Session]:
    """Return a subclass whose transaction cannot be ended by those who are handed the session."""

    class HandlerSession(session_class):  # type: ignore[misc,valid-type]  # a base known at run time only
        def commit(self) -> None:
            _refuse("commit")

        def rollback(self) -> None:
            _refuse("rollback")

        def close(self) -> None:
            _refuse("close")

        def reset(self) -> None:
            _refuse("reset")

        def invalidate(self) -> None:
            _refuse("invalidate")

        def prepare(self) -> None:
            _refuse("prepare")

    return HandlerSession
