"""The order of parked messages: in an ordered inbox the later ones of a key park behind the first (`behind`).

The first one of a key that is left is promoted to `waiting` in a statement of its own, after the commit that removed
its predecessor, and again after the commit that parked it: whichever commit comes last, its promotion sees both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    ScalarSelect,
    Select,
    String,
    Text,
    exists,
    func,
    literal_column,
    select,
    update,
)

from sagapost.core.databases import Moments
from sagapost.inbox.declared.settings import DeadLetterPolicy
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.envelope import shown

__all__ = ["ORDERED", "WAITING", "ParkedOrder"]

# Literals and no parameters: PostgreSQL must be able to tell that these are the conditions of the partial indexes.
ORDERED: ColumnElement[int] = literal_column("1", Integer)
WAITING: ColumnElement[str] = literal_column("'waiting'", String)


class ParkedOrder:
    """Which parked message of an ordering key is the first; every method runs in the caller's transaction.

    With policy `skip` a dead letter holds nothing back, and is never the first.
    """

    def __init__(self, tables: InboxTables, moments: Moments, *, consumer: int, on_dead: DeadLetterPolicy) -> None:
        self._table = tables.parked
        self._moments = moments
        self._consumer = consumer
        columns = self._table.c
        self._holds: list[ColumnElement[bool]] = [columns.consumer == consumer, columns.ordered == ORDERED]
        if on_dead == "skip":
            self._holds.append(columns.state != "dead")
        self._kit = moments.kit
        # One text for any number of keys, so that it is compiled and prepared once.
        self._keys: FromClause = self._kit.elements("keys", Text)
        # For each key a look at the end of the index: a join might read every message that is parked.
        first = select(func.min(columns.id)).where(*self._holds, columns.partitionkey == self._keys.c.value)
        self._first: ScalarSelect[int] = first.correlate(self._keys).scalar_subquery()
        self._firsts = select(self._keys.c.value, self._first.label("first"))

    def is_blocked(self, connection: Connection, key: str, before: int | None = None) -> bool:
        """Return whether a message of this ordering key is parked (and, with `before`, was so earlier)."""
        columns = self._table.c
        conditions = [*self._holds, columns.partitionkey == shown(key)]
        if before is not None:
            conditions.append(columns.id < before)
        return bool(connection.execute(select(exists().where(*conditions))).scalar())

    def firsts(self, connection: Connection, keys: Collection[str]) -> Mapping[str, int]:
        """Return the first parked message of each of these ordering keys that has one."""
        found = {row.value: row.first for row in connection.execute(self._firsts, self._parameters(keys))}
        firsts = ((key, found[shown(key)]) for key in keys)
        return {key: first for key, first in firsts if first is not None}

    def promote(self, connection: Connection, keys: Collection[str]) -> int:
        """Let the first parked message of each ordering key go, if it waits behind nothing any more."""
        return self._promote(connection, select(self._first).select_from(self._keys), self._parameters(keys))

    def promote_all(self, connection: Connection) -> int:
        """Let every message go that waits behind nothing any more: what a crash kept from being promoted.

        Reads an entry of the index for every parked message, once.
        """
        columns = self._table.c
        firsts = select(func.min(columns.id)).where(*self._holds).group_by(columns.partitionkey)
        return self._promote(connection, firsts, {})

    def followers(self, connection: Connection, keys: Sequence[str], limit: int) -> list[int]:
        """Lock and return up to `limit` messages that wait behind others of these ordering keys."""
        columns = self._table.c
        statement = (
            select(columns.id)
            .where(
                columns.consumer == self._consumer,
                columns.ordered == ORDERED,
                columns.partitionkey.in_(keys),
                columns.state == "behind",
                # Nobody had it in flight when a process died.
                columns.crashes + columns.claimed == 0,
            )
            .order_by(columns.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return list(connection.execute(statement).scalars())

    def _promote(self, connection: Connection, firsts: Select[Any], parameters: Mapping[str, object]) -> int:
        columns = self._table.c
        which = self._kit.among(columns.id, firsts, BigInteger)
        statement = (
            update(self._table)
            .where(columns.consumer == self._consumer, columns.ordered == ORDERED, columns.state == "behind", which)
            .values(state="waiting", next_attempt_at=self._moments.now())
        )
        return connection.execute(statement, parameters).rowcount

    def _parameters(self, keys: Collection[str]) -> dict[str, object]:
        # In one order everywhere, so that two transactions with keys in common wait for each other one way only.
        known = sorted({shown(key) or "" for key in keys})
        return {"keys": self._kit.listed(known)}
