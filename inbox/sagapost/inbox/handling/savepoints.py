"""Savepoints of ours in an open transaction, one after the other, each in one round trip where the driver allows it.

SQLAlchemy's own have a new name each, which a driver that prepares statements prepares anew, and release and set take
a round trip each: twice the cost of what the savepoint is there for. These have one name, and the next is set with
what releases the last and, where it can be, with the claim of what it is for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import NestedTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

__all__ = ["Savepoints"]

_NAME = "sagapost"
_SET = f"SAVEPOINT {_NAME}"
_RELEASE = f"RELEASE SAVEPOINT {_NAME}"
_RETURN = f"ROLLBACK TO SAVEPOINT {_NAME}"
_COUNTED = " 1"
"""How a driver's words for a command end that has written one row."""


class _Joined(NestedTransaction):
    """The savepoint that is set, for sessions to join: a flush that fails returns to it and undoes nothing before."""

    def __init__(self, connection: Connection) -> None:
        # Not the base's, which names a savepoint and sets it; what it does beside that is here.
        self.connection = connection
        self._savepoint = _NAME
        self.is_active = True
        self._previous_nested = None
        # SQLAlchemy has no public way to let sessions join a savepoint.
        connection._nested_transaction = self  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Savepoints:
    """The savepoints of one transaction. In a greenlet of SQLAlchemy's."""

    __slots__ = ("_connection", "_driver", "_set")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._set = False
        driver: Any = connection.connection.driver_connection
        # asyncpg: several statements in one round trip, and the answer to the last; not under names that are mapped.
        plain = "schema_translate_map" not in connection.get_execution_options()
        self._driver: Any = driver if plain and hasattr(driver, "is_in_transaction") else None

    def next(self, claim: str | None) -> bool | None:
        """Release the last savepoint and set another; return whether `claim` wrote its row, None if it was not run.

        :param claim: an INSERT of one row without parameters.
        :raises SQLAlchemyError: if there was no savepoint any more, or a statement failed.
        """
        connection = self._connection
        self._leave()
        written = None
        if self._driver is not None and self._set and claim is not None:
            written = self._run(f"{_RELEASE};{_SET};{claim}")
        else:
            # The first begins the transaction, which is the driver's adapter's to do.
            if self._set:
                connection.exec_driver_sql(_RELEASE)
            connection.exec_driver_sql(_SET)
        self._set = True
        _Joined(connection)
        return written

    def release(self) -> None:
        """Release the last savepoint.

        :raises SQLAlchemyError: if there was none any more, or its transaction has failed.
        """
        self._leave()
        self._connection.exec_driver_sql(_RELEASE)
        self._set = False

    def undo(self) -> None:
        """Return to the savepoint, whatever was done since.

        :raises SQLAlchemyError: if it is not there any more.
        """
        self._leave()
        self._connection.exec_driver_sql(_RETURN)

    def _leave(self) -> None:
        """Let SQLAlchemy forget the savepoint, and those that a function has left open within it."""
        nested = self._connection.get_nested_transaction()
        if nested is not None:
            # As it does itself when the transaction around it ends.
            nested._cancel()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def _run(self, script: str) -> bool:
        try:
            answer: str = await_only(self._driver.execute(script))
        except Exception as error:
            # As SQLAlchemy does: whoever judges errors knows them by this.
            raise DBAPIError(script, None, error) from error
        return answer.endswith(_COUNTED)
