"""What became of a transaction that users' code ran in: the drivers' own word for it, at no round trip of its own.

PostgreSQL undoes a transaction in which a statement failed, and answers its COMMIT with ROLLBACK and no error. A
driver that shows the state of the transaction is asked before the commit; asyncpg does not, so there the server's
answer to COMMIT is read.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.databases import code_of, kit_of

__all__ = [
    "Answer",
    "begin_noting",
    "has_failed",
    "is_aftermath",
    "is_lost",
    "is_open",
    "note_errors_of",
    "noted_error",
    "undoes_by_itself",
    "watch",
]

_NOTED = "sagapost.failed_statement"
_IN_FAILED_TRANSACTION = "25P02"
_IN_TRANSACTION, _IN_ERROR = 2, 3  # libpq's PGTransactionStatusType, as psycopg shows it


# --- errors of statements, which users' code may swallow ---


def note_errors_of(engine: AsyncEngine) -> None:
    """Keep the last error of each connection's statements, so that a failure can name it."""
    if not event.contains(engine.sync_engine, "handle_error", _note):
        event.listen(engine.sync_engine, "handle_error", _note)


def _note(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception or context.original_exception
    if context.connection is None or context.connection.closed or context.is_disconnect:
        return
    if is_aftermath(error):
        # What follows from the one that is noted already.
        return
    context.connection.info[_NOTED] = error


def begin_noting(connection: Connection) -> None:
    """Forget what failed in earlier transactions of the connection."""
    connection.info.pop(_NOTED, None)


def noted_error(connection: Connection) -> BaseException | None:
    """Return the statement's error that was last seen."""
    if connection.closed or connection.invalidated:
        return None
    found: BaseException | None = connection.info.get(_NOTED)
    return found


# --- the state of the transaction ---


def is_open(connection: Connection) -> bool:
    """Return whether the driver says that a transaction is open, be it one that has failed."""
    driver: Any = connection.connection.driver_connection
    if (status := _status(driver)) is not None:
        return status in {_IN_TRANSACTION, _IN_ERROR} or is_lost(connection)
    asked = getattr(driver, "is_in_transaction", None)
    if asked is None:
        return bool(getattr(driver, "in_transaction", True))
    return is_lost(connection) or bool(asked())


def is_lost(connection: Connection) -> bool:
    """Return whether the driver's connection is closed, so far as the driver has noticed."""
    if connection.invalidated:
        return True
    driver: Any = connection.connection.driver_connection
    closed = getattr(driver, "closed", None)
    if closed is None:
        asked = getattr(driver, "is_closed", None)
        closed = asked() if asked is not None else False
    return bool(closed)


def has_failed(connection: Connection) -> bool:
    """Return whether the open transaction can only be rolled back any more.

    A round trip only where a statement failed, and only with a driver that does not say.
    """
    driver: Any = connection.connection.driver_connection
    if (status := _status(driver)) is not None:
        return status == _IN_ERROR
    if noted_error(connection) is None or not hasattr(driver, "is_in_transaction"):
        return False
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        if code_of(error) != _IN_FAILED_TRANSACTION:
            raise
        return True
    return False


def is_aftermath(error: BaseException) -> bool:
    """Return whether a statement failed only because an earlier one of its transaction had."""
    return isinstance(error, DBAPIError) and code_of(error) == _IN_FAILED_TRANSACTION


def undoes_by_itself(connection: Connection, error: BaseException | None) -> bool:
    """Return whether the database itself may have ended the transaction with this error, as SQLite does with some."""
    return isinstance(error, SQLAlchemyError) and kit_of(connection).one_writer


def _status(driver: object) -> int | None:
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return None if status is None else int(status)


# --- the answer to COMMIT ---


class Answer:
    """What the server answered to a COMMIT that was watched."""

    __slots__ = ("tag",)

    def __init__(self) -> None:
        self.tag: str | None = None

    @property
    def rolled_back(self) -> bool:
        """Whether the transaction was rolled back in place of being committed."""
        return self.tag == "ROLLBACK"


class _Watched:
    """Stands for asyncpg's connection while its transaction commits, and keeps what the server answers."""

    __slots__ = ("_answer", "_connection")

    def __init__(self, connection: Any, answer: Answer) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_answer", answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    async def execute(self, query: str) -> Any:
        answer = await self._connection.execute(query)
        self._answer.tag = answer
        return answer


def watch(connection: Connection) -> Answer:
    """Watch the COMMIT that comes next on this connection.

    Where nothing can be watched, the transaction is asked for its state, at the price of a round trip.
    """
    answer = Answer()
    pooled = connection.connection
    driver: Any = pooled.driver_connection
    if (status := _status(driver)) is not None:
        answer.tag = "ROLLBACK" if status == _IN_ERROR else None
        return answer
    if not hasattr(driver, "is_in_transaction"):
        return answer
    transaction: Any = getattr(pooled.dbapi_connection, "_transaction", None)
    if hasattr(transaction, "_connection"):
        transaction._connection = _Watched(transaction._connection, answer)  # noqa: SLF001 asyncpg has no public way
        return answer
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError as error:
        if code_of(error) != _IN_FAILED_TRANSACTION:
            raise
        answer.tag = "ROLLBACK"
    return answer
