"""How the inbox tables of older releases become those of this one (`sagapost.core.migrations`).

Version 2: what each consumer takes. Version 3: decisions about parked messages move into the audit of all decisions.
Consumers of the older versions may run on meanwhile.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, Table, inspect

from sagapost.core.audit import AuditTables
from sagapost.core.databases import kit_of
from sagapost.core.migrations import AddTable, Execute, Migration

__all__ = ["inbox_migrations"]


def inbox_migrations(types: Table, consumers: Table, audit: AuditTables) -> tuple[Migration, ...]:
    """Return the migrations of the inboxes of one database; the part `audit` is there before."""
    return (Migration(2, (AddTable(types),)), Migration(3, (_move_audit(consumers, audit),)))


def _move_audit(consumers: Table, audit: AuditTables) -> Execute:
    old = Table(f"{audit.prefix}inbox_audit", MetaData(), schema=audit.schema)

    def moved(connection: Connection) -> bool:
        return not inspect(connection).has_table(old.name, schema=old.schema)

    return Execute(
        f"move {old.name} into {audit.decisions.name}",
        {name: _statements(name, old, consumers, audit) for name in ("postgresql", "sqlite")},
        moved,
    )


def _statements(dialect: str, old: Table, consumers: Table, audit: AuditTables) -> tuple[str, ...]:
    quote = kit_of(dialect).quote
    kept = "at, actor, action, reason"
    return (
        f"INSERT INTO {quote(audit.decisions)} "  # noqa: S608 - names of our own
        f"({kept}, desk, place, subject, event_id, source, type, original, data) "
        f"SELECT {kept}, 'parked', (SELECT name FROM {quote(consumers)} c WHERE c.id = a.consumer), "
        f"CAST(parked_id AS text), event_id, source, type, envelope, data FROM {quote(old)} a ORDER BY a.id",
        f"DROP TABLE {quote(old)}",
    )
