"""Events through an ORM Session: pending like your objects, written after them, by one INSERT per flush.

Publishing adds a `PendingRows` object to the session, and the session decides its fate as it does for every pending
object: a rollback, a savepoint's rollback, or a close drops it; a flush (also one whose only work it is, also in a
session joined to an outer transaction) writes it. A list of events kept beside the session has none of that: it
survives the rollback of a savepoint, and the flush hooks that should empty it are skipped for a clean session.

The INSERT itself is not left to the mapper but sent from `after_flush`, for two reasons. Mappers with no relationship
between them are flushed in the order of their class names, so an event could draw its position *before* the UPDATE
that takes its aggregate's row lock, and overtake the event of an earlier transaction. And one Core INSERT with all
rows costs less than what the mapper spends on each (`python -m benchmarks write`).
"""

from __future__ import annotations

import itertools

from sqlalchemy import Connection, Delete, Insert, Integer, Table, event, literal_column, select
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper, Session, UOWTransaction, registry

from sagapost.core.errors import ConfigurationError, NotInTransactionError
from sagapost.outbox.connection import AUTOCOMMIT_REMEDY, insert_rows, is_autocommit
from sagapost.outbox.rows import Rows, RowValues, Target

__all__ = ["PendingRows", "add_rows", "require_session_transaction", "withdraw_pending"]

_sequence = itertools.count(1)


class PendingRows:
    """Rows that will be written when their session flushes.

    Mapped to a selectable without a table, so that the unit of work keeps it and emits no SQL for it.
    """

    id: int
    rows: Rows
    in_flush: bool = False


_nothing = select(literal_column("0", Integer).label("id")).subquery("sagapost_pending")
registry().map_imperatively(PendingRows, _nothing, primary_key=[_nothing.c.id])


def require_session_transaction(session: Session, statement: Insert | Delete) -> None:
    """Check that what is added to `session` will share its transaction's fate.

    A session that begins by itself is fine: what it holds is written by its commit or not at all.

    :param statement: what is to be executed, since a session may have one engine to read and another to write.
    :raises NotInTransactionError: if the session neither is in a transaction nor begins one by itself, or its engine
        commits every statement.
    :raises ConfigurationError: if the session has no engine for the table.
    """
    if not session.autobegin and not session.in_transaction():
        raise NotInTransactionError(
            handle="a Session with autobegin=False", remedy="Call it inside `with session.begin():`."
        )
    try:
        bind = session.get_bind(clause=statement)
    except UnboundExecutionError as error:
        raise ConfigurationError(
            f"The session is bound to engines per class or table, and to none for the table {str(statement.table)!r}. "
            "Add it to the session's binds, beside the engine of what it is written with."
        ) from error
    if session.bind is None:
        # A session bound per class or table knows no engine for PendingRows, and the unit of work asks for one.
        session.bind_mapper(PendingRows, bind)
    if is_autocommit(bind):
        raise NotInTransactionError(handle="a Session", remedy=AUTOCOMMIT_REMEDY)


def add_rows(session: Session, rows: Rows) -> None:
    """Add rows to the session; sends nothing."""
    pending = PendingRows()
    pending.id = next(_sequence)
    pending.rows = rows
    session.add(pending)


def withdraw_pending(session: Session, matching: RowValues, *, table: Table | None = None) -> int:
    """Take back rows (of `table`) that are not yet flushed and have every one of these values; return how many."""
    withdrawn = 0
    for pending in _pending(session):
        if table is not None and pending.rows.target.table is not table:
            continue
        kept = [row for row in pending.rows.values if not matching.items() <= row.items()]
        withdrawn += len(pending.rows.values) - len(kept)
        pending.rows = Rows(pending.rows.target, kept)
    return withdrawn


def _pending(session: Session) -> list[PendingRows]:
    """Return what waits for the next flush, in the order of publishing."""
    return [pending for pending in session.new if isinstance(pending, PendingRows)]


@event.listens_for(PendingRows, "before_insert")
def _mark(_mapper: Mapper[PendingRows], _connection: Connection, pending: PendingRows) -> None:
    # Only what this flush holds: another after_flush listener may publish too, and that waits for the next flush.
    pending.in_flush = True


@event.listens_for(Session, "after_flush")
def _write(session: Session, _context: UOWTransaction) -> None:
    """Write the rows of this flush, after the caller's own: one INSERT per table."""
    batches: dict[Target, list[RowValues]] = {}
    for pending in _pending(session):
        if pending.in_flush:
            batches.setdefault(pending.rows.target, []).extend(pending.rows.values)
    for target, values in batches.items():
        connection = session.connection(bind_arguments={"clause": target.core_one})
        if is_autocommit(connection):
            raise NotInTransactionError(handle="a Session", remedy=AUTOCOMMIT_REMEDY)
        insert_rows(connection, Rows(target, values))
