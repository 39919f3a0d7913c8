"""The tracker's own tables: one row per saga with its history, business keys, what was observed, what was done."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.schema import conv

from sagapost.core.audit import AuditTables
from sagapost.core.columns import big_integer
from sagapost.core.schema import SchemaPart, schema_table, tables_beside
from sagapost.sagas.migrations import tracker_migrations

__all__ = ["TRACKER_SCHEMA_VERSION", "TrackerTables"]

TRACKER_SCHEMA_VERSION = 2


class TrackerTables:
    """The tables of one tracker, in a database of its own or beside others.

    :param metadata: your MetaData, so that Alembic's autogenerate sees the tables; default: one of our own.
    :param schema: database schema (PostgreSQL); default: the connection's search path.
    :param prefix: put before each table name, where names would clash.
    """

    def __init__(self, metadata: MetaData | None = None, *, schema: str | None = None, prefix: str = "") -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self.versions = schema_table(self.metadata, schema=schema, prefix=prefix)

        self.sagas = self._sagas()
        self.keys = self._keys()
        self.observed = self._observed()
        self.choreography = self._choreography()
        self.actions = self._actions()
        self.audit = tables_beside(AuditTables, self)
        """What operators asked of services."""

    def _sagas(self) -> Table:
        # The history lies in the row: folding a batch is one read and one write per saga, showing a saga one read.
        table = Table(
            f"{self.prefix}tracker_sagas",
            self.metadata,
            Column("saga", String(255), primary_key=True),
            Column("state", String(16), nullable=False),
            Column("reason", Text),
            Column("started_at", DateTime(timezone=True), nullable=False),
            Column("last_at", DateTime(timezone=True), nullable=False),
            Column("ended_at", DateTime(timezone=True)),
            # When the next running deadline passes.
            Column("due_at", DateTime(timezone=True)),
            Column("events", Integer, nullable=False),
            Column("truncated", Boolean, nullable=False),
            # msgpack, see `entries.pack`.
            Column("history", LargeBinary, nullable=False),
            # Grows with each write; a write that was computed from an older row changes nothing.
            Column("version", big_integer(), nullable=False),
            CheckConstraint(
                "state IN ('running', 'completed', 'rolling_back', 'rolled_back', 'waiting', 'stuck')",
                name=conv(f"{self.prefix}tracker_sagas_known"),
            ),
            CheckConstraint(
                "(state IN ('completed', 'rolled_back')) = (ended_at IS NOT NULL)",
                name=conv(f"{self.prefix}tracker_sagas_ended"),
            ),
            schema=self.schema,
            # Room for the next version of a row on its own page: a fold that changes no indexed column touches no
            # index.
            postgresql_with={"fillfactor": 70},
        )
        # Lists: of a state, newest first. `last_at` is in no index, since it changes with every event.
        Index(conv(f"{self.prefix}tracker_sagas_state"), table.c.state, table.c.started_at, table.c.saga)
        Index(conv(f"{self.prefix}tracker_sagas_started"), table.c.started_at, table.c.saga)
        # Who is late?
        Index(
            conv(f"{self.prefix}tracker_sagas_due"),
            table.c.due_at,
            postgresql_where=text("due_at IS NOT NULL"),
            sqlite_where=text("due_at IS NOT NULL"),
        )
        # What may be forgotten?
        Index(
            conv(f"{self.prefix}tracker_sagas_ended_at"),
            table.c.ended_at,
            postgresql_where=text("ended_at IS NOT NULL"),
            sqlite_where=text("ended_at IS NOT NULL"),
        )
        return table

    def _keys(self) -> Table:
        table = Table(
            f"{self.prefix}tracker_keys",
            self.metadata,
            Column("value", String(255), primary_key=True),
            Column("saga", String(255), primary_key=True),
            Column("name", String(255), primary_key=True),
            schema=self.schema,
        )
        Index(conv(f"{self.prefix}tracker_keys_saga"), table.c.saga)
        return table

    def _observed(self) -> Table:
        # Every (who, what) that was observed in a saga that is kept; compared with what is declared.
        return Table(
            f"{self.prefix}tracker_observed",
            self.metadata,
            Column("source", String(255), primary_key=True),
            Column("type", String(255), primary_key=True),
            Column("saga", String(255), nullable=False),
            Column("first_at", DateTime(timezone=True), nullable=False),
            schema=self.schema,
        )

    def _choreography(self) -> Table:
        # What the rows were derived with, so that whoever asks derives the same.
        return Table(
            f"{self.prefix}tracker_choreography",
            self.metadata,
            Column("name", String(16), primary_key=True),
            # JSON, see `route.Declared`.
            Column("declared", LargeBinary, nullable=False),
            schema=self.schema,
        )

    def _actions(self) -> Table:
        table = Table(
            f"{self.prefix}tracker_actions",
            self.metadata,
            # Of each rule at most one action per saga, whoever decides it and however often.
            Column("saga", String(255), primary_key=True),
            Column("rule", String(100), primary_key=True),
            Column("state", String(8), nullable=False),
            # Names the action to whoever is told: an event's id, or a webhook's idempotency key.
            Column("key", String(64), nullable=False),
            Column("reason", Text, nullable=False),
            Column("url", Text),
            Column("attempts", Integer, nullable=False, server_default="0"),
            Column("last_error", Text),
            Column("due_at", DateTime(timezone=True)),
            Column("decided_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            CheckConstraint(
                "state IN ('pending', 'done', 'failed')", name=conv(f"{self.prefix}tracker_actions_known")
            ),
            CheckConstraint(
                "(state = 'pending') = (due_at IS NOT NULL)", name=conv(f"{self.prefix}tracker_actions_due")
            ),
            schema=self.schema,
        )
        Index(
            conv(f"{self.prefix}tracker_actions_pending"),
            table.c.due_at,
            postgresql_where=text("state = 'pending'"),
            sqlite_where=text("state = 'pending'"),
        )
        return table

    @property
    def part(self) -> SchemaPart:
        """The tables as one installable part."""
        return SchemaPart(
            name="tracker",
            version=TRACKER_SCHEMA_VERSION,
            tables=(self.sagas, self.keys, self.observed, self.choreography, self.actions),
            needs=(self.audit.part,),
            migrations=tracker_migrations(self.sagas),
        )
