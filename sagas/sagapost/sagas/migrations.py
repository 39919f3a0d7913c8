"""How the tables of sagas and of the tracker of older releases become those of this one (`sagapost.core.migrations`).

Version 2: one vocabulary of states (running, rolling_back, rolled_back, stuck), and the trace in which a rollback
began. Compensators, consumers with islands, and trackers of version 1 cannot write the new states: stop them, upgrade,
start the new ones. Steps that record intents may go on meanwhile.

Version 3: when a saga ended well, and the ordering key of what is undone. What runs of version 2 may go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import CheckConstraint, Index, Table

from sagapost.core.migrations import (
    AddCheck,
    AddColumn,
    AddIndex,
    ChangeRows,
    DropCheck,
    Migration,
    MigrationStep,
    RebuildTable,
    ValidateCheck,
)

__all__ = ["saga_migrations", "tracker_migrations"]

_TRACE = ("rollback_traceparent", "rollback_tracestate")
_COMPLETED = "completed_at"
_KEY = "partitionkey"


def saga_migrations(states: Table, compensations: Table, runs: Table, steps: Table) -> tuple[Migration, ...]:
    """Return the migrations of one ledger with its islands."""
    islands = {"undoing": "rolling_back", "undone": "rolled_back"}
    return (
        Migration(
            2,
            (
                RebuildTable(states, added=frozenset({*_TRACE, _COMPLETED})),
                *(AddColumn(states.c[name]) for name in _TRACE),
                AddIndex(_index(states, "_stuck")),
                *_renamed(
                    compensations, {"needs_human": "stuck"}, ("id",), "known", "say_why", added=frozenset({_KEY})
                ),
                *_renamed(runs, islands, ("id",), "known", "ended", "say_why"),
                *_renamed(steps, {**islands, "needs-human": "stuck"}, ("run", "step"), "known", "tasks"),
            ),
        ),
        Migration(
            3,
            (
                RebuildTable(states, added=frozenset({_COMPLETED})),
                RebuildTable(compensations, added=frozenset({_KEY})),
                AddColumn(states.c[_COMPLETED]),
                AddColumn(compensations.c[_KEY]),
            ),
        ),
    )


def tracker_migrations(sagas: Table) -> tuple[Migration, ...]:
    """Return the migrations of one tracker."""
    words = {"compensating": "rolling_back", "compensated": "rolled_back"}
    return (Migration(2, tuple(_renamed(sagas, words, ("saga",), "known", "ended"))),)


def _renamed(
    table: Table,
    words: Mapping[str, str],
    key: tuple[str, ...],
    *checks: str,
    added: frozenset[str] = frozenset(),
) -> list[MigrationStep]:
    """Return the steps that give states other words; `checks` are the ends of the names of those that list them.

    :param added: columns of later versions.
    """
    cases = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in words.items())
    value = f"CASE state {cases} ELSE state END"
    pending = " OR ".join(f"state = '{old}'" for old in words)
    names = [f"{table.name}_{check}" for check in checks]
    found = {str(each.name): each for each in table.constraints if isinstance(each, CheckConstraint)}
    return [
        RebuildTable(table, added=added, converted={"state": value}),
        *(DropCheck(table, name, when=old) for name in names for old in words),
        ChangeRows(table, pending, f"state = {value}", key),
        *(step for name in names for step in (AddCheck(found[name]), ValidateCheck(found[name]))),
    ]


def _index(table: Table, suffix: str) -> Index:
    return next(each for each in table.indexes if str(each.name).endswith(suffix))
