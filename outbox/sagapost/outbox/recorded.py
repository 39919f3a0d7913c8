"""The time of an event: what its publisher's clock says, as far as the clock of the database agrees (docs/adr/0026).

Clocks of hosts are wrong at times, by days after a virtual machine was resumed. The time of an event decides whether
an inbox may still take it and whether it begins a saga anew, so it must be one that no publisher's clock can bend. The
publisher's is kept where it is near the database's, since it tells the events of one transaction apart.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["AHEAD", "BEHIND", "Recorded", "recorded"]

BEHIND = timedelta(seconds=10)
"""How long before its row is written an event may have been published: a session writes when it is flushed."""

AHEAD = timedelta(seconds=1)
"""How far a clock may be ahead of the database's: nothing is published after it was written."""


def recorded(time: str) -> str:
    """Return the SQL of PostgreSQL for the time of an event that is being written.

    Reckoned at the statement, not the begin of the transaction, which may be long ago.

    :param time: the SQL of the time by the publisher's clock.
    """
    earliest = f"clock_timestamp() - interval '{BEHIND.total_seconds():g} s'"
    latest = f"clock_timestamp() + interval '{AHEAD.total_seconds():g} s'"
    return f"greatest(least({time}, {latest}), {earliest})"


class Recorded(FunctionElement[datetime]):
    """`recorded` for statements of SQLAlchemy.

    A database inside the publisher's own process (SQLite) has the publisher's clock: its time is taken as it is.
    """

    type = DateTime(timezone=True)
    inherit_cache = True

    def __init__(self, time: ColumnElement[datetime]) -> None:
        super().__init__(time)


@compiles(Recorded)
def _as_it_is(element: Recorded, compiler: SQLCompiler, **arguments: Any) -> str:
    return str(compiler.process(element.clauses, **arguments))


@compiles(Recorded, "postgresql")
def _corrected(element: Recorded, compiler: SQLCompiler, **arguments: Any) -> str:
    return recorded(str(compiler.process(element.clauses, **arguments)))
