"""Positions only grow, also where the database forgot how far they had come.

A sequence is not part of what logical replication copies, a restored table comes without it, and ``TRUNCATE ...
RESTART IDENTITY`` takes it back: new events would then be drawn before those that wait, and overtake those of their
key.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.dialects.postgresql.base import PGDialect, PGIdentifierPreparer
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler

from sagapost.core.schema import Supplement

__all__ = ["AdvancePositions", "advance_statement"]

_quoting = PGIdentifierPreparer(PGDialect())  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy


class AdvancePositions(Supplement):
    """Advances the sequence of positions past every row there is. Repeatable; touches no row."""

    what = (
        "positions that go on behind the newest event (the sequence of the outbox is behind its rows, as after a move "
        "to another server: new events would overtake those that wait)"
    )
    needed = True

    def __init__(self, *, outbox: Table, dead: Table) -> None:
        self.outbox = outbox
        self.dead = dead

    def present(self, connection: Connection) -> bool:
        """Return whether new events are drawn behind all that are there."""
        if connection.dialect.name == "postgresql":
            statement = _behind(self.outbox, self.dead, select="SELECT count(*)")
        elif connection.dialect.name == "sqlite":
            statement = _behind_sqlite(self.outbox, self.dead)
        else:
            return True
        return not connection.execute(text(statement)).scalar_one()


def advance_statement(outbox: Table, dead: Table, dialect: str) -> str:
    """Return the statement that advances the positions, if they are behind; with a result row where it did.

    On PostgreSQL it needs the right UPDATE on the sequence, but only where there is something to do.
    """
    if dialect == "postgresql":
        return _behind(outbox, dead, select="SELECT setval(seq, highest)")
    return (
        f"UPDATE sqlite_sequence SET seq = ({_highest_sqlite(outbox, dead)}) "  # noqa: S608 - names of ours
        f"WHERE name = '{outbox.name}' AND seq < ({_highest_sqlite(outbox, dead)})"
    )


def _behind(outbox: Table, dead: Table, *, select: str) -> str:
    """Apply `select` to the sequence and the highest position, where the sequence is behind."""
    name = _quoting.format_table(outbox).replace("'", "''")
    # Rows are not locked and none is read: both maxima come from the end of a primary key. The sequence's state is
    # read through a function, since its name is known only when the statement runs.
    return (
        f"{select} FROM (SELECT pg_get_serial_sequence('{name}', 'position')::regclass AS seq, "  # noqa: S608
        f"greatest((SELECT max(position) FROM {_quoting.format_table(outbox)}), "
        f"(SELECT max(position) FROM {_quoting.format_table(dead)})) AS highest) s "
        "WHERE seq IS NOT NULL AND highest > coalesce(pg_sequence_last_value(seq), 0)"
    )


def _highest_sqlite(outbox: Table, dead: Table) -> str:
    return (
        f"SELECT max(coalesce((SELECT max(position) FROM {_quoting.format_table(outbox)}), 0), "  # noqa: S608
        f"coalesce((SELECT max(position) FROM {_quoting.format_table(dead)}), 0))"
    )


def _behind_sqlite(outbox: Table, dead: Table) -> str:
    # AUTOINCREMENT looks at the table as well as at its memory, so only dead letters can be ahead.
    return (
        f"SELECT ({_highest_sqlite(outbox, dead)}) > max("  # noqa: S608 - names of ours
        f"coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{outbox.name}'), 0), "
        f"coalesce((SELECT max(position) FROM {_quoting.format_table(outbox)}), 0))"
    )


@compiles(AdvancePositions)
def _nothing(_element: AdvancePositions, _compiler: DDLCompiler, **_: Any) -> str:
    # So that one migration script serves every database.
    return "SELECT 1"


@compiles(AdvancePositions, "postgresql")
@compiles(AdvancePositions, "sqlite")
def _advance(element: AdvancePositions, compiler: DDLCompiler, **_: Any) -> str:
    return advance_statement(element.outbox, element.dead, compiler.dialect.name)
