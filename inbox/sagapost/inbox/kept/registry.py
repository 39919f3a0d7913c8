"""A consumer's number: two bytes that stand for its name in every row of the dedup table."""

from __future__ import annotations

from sqlalchemy import Connection, select

from sagapost.core.databases import kit_of
from sagapost.inbox.declared.tables import InboxTables

__all__ = ["find_consumer", "register_consumer"]


def find_consumer(connection: Connection, tables: InboxTables, name: str) -> int | None:
    """Return the number of a consumer, None if it has never run."""
    columns = tables.consumers.c
    found: int | None = connection.execute(select(columns.id).where(columns.name == name)).scalar_one_or_none()
    return found


def register_consumer(connection: Connection, tables: InboxTables, name: str) -> int:
    """Return the number of a consumer, giving it one the first time. Safe for several replicas that start at once."""
    found = find_consumer(connection, tables, name)
    if found is None:
        connection.execute(kit_of(connection).insert_once(tables.consumers).values(name=name))
        found = find_consumer(connection, tables, name)
    if found is None:
        raise RuntimeError(f"The consumer {name!r} was inserted and is not there.")
    return found
