"""Positions only grow, also where the database forgot how far they had come.

A sequence is not part of what logical replication copies, a restored table comes without it, and ``TRUNCATE ...
RESTART IDENTITY`` takes it back: new events would then be drawn before those that wait, and overtake those of their
key.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import DDLCompiler

from sagapost.core.databases import kit_of
from sagapost.core.schema import Supplement

__all__ = ["AdvancePositions"]


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
        """Return whether new events are drawn behind all that are there, so far as this role may see."""
        lags, _ = self._look(connection)
        return not lags

    def remark(self, connection: Connection) -> str | None:
        """See `Supplement.remark`: what this role may not see."""
        lags, grant = self._look(connection)
        if lags is not None:
            return None
        return (
            "whether new positions go on behind the newest event cannot be seen by this role. After a restore or a "
            f"move to another server they may not, and new events would overtake those that wait. To see it: {grant}"
        )

    def _look(self, connection: Connection) -> tuple[bool | None, str | None]:
        found = connection.execute(text(kit_of(connection).sequence_lags(self.outbox, self.dead))).one()
        return found[0], found[1]


@compiles(AdvancePositions)
def _advance(element: AdvancePositions, compiler: DDLCompiler, **_: Any) -> str:
    return kit_of(compiler.dialect.name).advance_sequence(element.outbox, element.dead)
