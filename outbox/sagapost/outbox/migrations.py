"""How the outbox tables of older releases become those of this one (`sagapost.core.migrations`).

Version 2: the database reckons the slot of a row, fills in what plain SQL may leave out, and refuses what is no event.
Adding the slot writes the outbox anew, under a lock that writers wait for: a matter of seconds for a million rows that
wait, of none for an outbox that is served. Relays of version 1 and 2 must not run side by side, since they divide the
keys differently: stop the old ones, upgrade, start the new. Services may write as before meanwhile and afterwards.

Version 3: a relay's heartbeats change nothing that writers or relays pass over again and again (docs/adr/0021). The
trigger no longer reads the table of relays; leases are held by their owner's heartbeats alone. Relays of version 2 and
3 must not run side by side: the former would take the leases of the latter.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Table

from sagapost.core.databases.postgresql import quoting
from sagapost.core.migrations import (
    AddCheck,
    AddColumn,
    ChangePrimaryKey,
    DropCheck,
    DropColumn,
    Execute,
    Migration,
    MigrationStep,
    RebuildTable,
    RelaxColumn,
    ValidateCheck,
)
from sagapost.outbox.doorbell import CreateDoorbell

__all__ = ["OUTBOX_SCHEMA_VERSION", "outbox_migrations"]

OUTBOX_SCHEMA_VERSION = 3
"""That of the last migration."""

_FILLED_IN = ("event_id", "topic", "time", "datacontenttype", "key_hash")


def outbox_migrations(
    *, outbox: Table, dead: Table, scheduled: Table, leases: Table, relays: Table, ring: CreateDoorbell
) -> tuple[Migration, ...]:
    """Return the migrations of one outbox."""
    return (
        Migration(
            2,
            (*_waiting_rows(outbox), *_dead_letters(dead), *_scheduled_rows(scheduled)),
        ),
        Migration(3, tuple(_ownership(leases, relays, ring))),
    )


def _ownership(leases: Table, relays: Table, ring: CreateDoorbell) -> list[MigrationStep]:
    # First of all: the former one reads a column that goes, inside the transactions of writers.
    trigger = str(ring.compile(dialect=quoting.dialect))
    return [
        Execute(f"replace {ring.what}", {"postgresql": (trigger,)}, ring.present),
        RebuildTable(leases),
        DropColumn(leases, "expires_at"),
        RebuildTable(relays),
        DropColumn(relays, "idle"),
        ChangePrimaryKey(relays),
    ]


def _waiting_rows(outbox: Table) -> list[MigrationStep]:
    return [
        RebuildTable(outbox, added=frozenset({"slot"})),
        *_let_be_left_out(outbox),
        AddColumn(outbox.c.slot),
        DropCheck(outbox, f"{outbox.name}_key_hash_range", when="key_hash"),
        *_checks(outbox, but=f"{outbox.name}_refused_rows_say_why"),
    ]


def _dead_letters(dead: Table) -> list[MigrationStep]:
    return [
        RebuildTable(dead, added=frozenset({"slot"})),
        *_let_be_left_out(dead),
        AddColumn(dead.c.slot),
        ChangePrimaryKey(dead),
    ]


def _scheduled_rows(scheduled: Table) -> list[MigrationStep]:
    return [RebuildTable(scheduled), *_let_be_left_out(scheduled), *_checks(scheduled)]


def _let_be_left_out(table: Table) -> list[MigrationStep]:
    return [RelaxColumn(table.c[name]) for name in _FILLED_IN]


def _checks(table: Table, *, but: str = "") -> list[MigrationStep]:
    found = [each for each in table.constraints if isinstance(each, CheckConstraint) and str(each.name) != but]
    steps: list[MigrationStep] = []
    for check in sorted(found, key=lambda each: str(each.name)):
        steps += [AddCheck(check), ValidateCheck(check)]
    return steps
