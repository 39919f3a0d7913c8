"""The compensation ledger: what a service would have to undo, and what became of it.

`saga_states` has one row per saga that this service has something to undo for; it is the lock by which progress and
rollback of one saga are kept apart. `saga_compensations` has one row per undo intent and is never deleted by the
library: the record of a rollback can be read years later.
"""

from __future__ import annotations

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.schema import conv

from sagapost.core.audit import AuditTables
from sagapost.core.columns import big_integer, json_document
from sagapost.core.schema import SchemaPart, place, schema_table, tables_beside
from sagapost.sagas.island_tables import IslandTables
from sagapost.sagas.migrations import saga_migrations
from sagapost.sagas.task_tables import task_table

__all__ = ["SAGA_SCHEMA_VERSION", "SagaTables"]

SAGA_SCHEMA_VERSION = 3


class SagaTables:
    """The ledger of the services of one database.

    :param metadata: your MetaData, so that Alembic's autogenerate sees the tables; default: one of our own.
    :param schema: database schema (PostgreSQL); default: the connection's search path.
    :param prefix: put before each table name, where names would clash.
    """

    def __init__(self, metadata: MetaData | None = None, *, schema: str | None = None, prefix: str = "") -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self.versions = schema_table(self.metadata, schema=schema, prefix=prefix)

        self.states = self._states()
        self.compensations = self._compensations()
        self.tasks = task_table(self.metadata, schema=schema, prefix=prefix)
        self.islands = IslandTables(self.metadata, schema=schema, prefix=prefix)
        self.audit = tables_beside(AuditTables, self)
        """What operators decided about tasks."""
        place(self)

    def _states(self) -> Table:
        table = Table(
            f"{self.prefix}saga_states",
            self.metadata,
            Column("service", String(255), primary_key=True),
            Column("saga", String(255), primary_key=True),
            # running -> rolling_back -> rolled_back; a late step brings rolled_back to rolling_back again. stuck: a
            # compensation was given up and a person must decide.
            Column("state", String(16), nullable=False),
            Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("rollback_started_at", DateTime(timezone=True)),
            Column("rollback_reason", Text),
            Column("rollback_cause", String(255)),
            # The trace in which it began: compensations go on with it.
            Column("rollback_traceparent", String(255)),
            Column("rollback_tracestate", Text),
            Column("rolled_back_at", DateTime(timezone=True)),
            # The point of no return: from here the saga is brought to its end, not undone, unless a person says so.
            Column("pivoted_at", DateTime(timezone=True)),
            Column("pivot_reason", Text),
            # When it ended well, as far as this service was told. It is not undone any more, unless a person says so.
            Column("completed_at", DateTime(timezone=True)),
            # When the next compensation may be tried.
            Column("due_at", DateTime(timezone=True)),
            CheckConstraint(
                "state IN ('running', 'rolling_back', 'rolled_back', 'stuck')",
                name=conv(f"{self.prefix}saga_states_known"),
            ),
            CheckConstraint(
                "(state = 'rolling_back') = (due_at IS NOT NULL)",
                name=conv(f"{self.prefix}saga_states_due_while_rolling_back"),
            ),
            CheckConstraint(
                "(state = 'running') = (rollback_started_at IS NULL)",
                name=conv(f"{self.prefix}saga_states_rollback_recorded"),
            ),
            schema=self.schema,
        )
        # The compensator's only question: what is due?
        Index(
            conv(f"{self.prefix}saga_states_due"),
            table.c.service,
            table.c.due_at,
            postgresql_where=text("state = 'rolling_back'"),
            sqlite_where=text("state = 'rolling_back'"),
        )

        # What waits for an operator, among what is kept for years.
        Index(
            conv(f"{self.prefix}saga_states_stuck"),
            table.c.service,
            postgresql_where=text("state = 'stuck'"),
            sqlite_where=text("state = 'stuck'"),
        )
        return table

    def _compensations(self) -> Table:
        table = Table(
            f"{self.prefix}saga_compensations",
            self.metadata,
            # The order of the steps; undone from the highest down.
            Column("id", big_integer(), Identity(always=True), primary_key=True),
            Column("service", String(255), nullable=False),
            Column("saga", String(255), nullable=False),
            Column("name", String(255), nullable=False),
            Column("arguments", json_document(), nullable=False),
            # The event whose handling did what is to be undone, and its ordering key.
            Column("step_event", String(255)),
            Column("partitionkey", Text),
            Column("state", String(16), nullable=False, server_default="pending"),
            Column("attempts", Integer, nullable=False, server_default="0"),
            Column("last_error", Text),
            Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("ended_at", DateTime(timezone=True)),
            # Who decided, where a person did, and why.
            Column("decided_by", Text),
            Column("note", Text),
            CheckConstraint(
                "state IN ('pending', 'done', 'stuck', 'settled')", name=conv(f"{self.prefix}saga_compensations_known")
            ),
            CheckConstraint(
                "(state IN ('done', 'settled')) = (ended_at IS NOT NULL)",
                name=conv(f"{self.prefix}saga_compensations_ended"),
            ),
            CheckConstraint(
                "state <> 'stuck' OR last_error IS NOT NULL", name=conv(f"{self.prefix}saga_compensations_say_why")
            ),
            CheckConstraint(
                "state <> 'settled' OR (decided_by IS NOT NULL AND note IS NOT NULL)",
                name=conv(f"{self.prefix}saga_compensations_decisions_are_signed"),
            ),
            schema=self.schema,
            sqlite_autoincrement=True,
        )
        Index(
            conv(f"{self.prefix}saga_compensations_saga"),
            table.c.service,
            table.c.saga,
            table.c.id,
        )
        return table

    @property
    def part(self) -> SchemaPart:
        """The tables as one installable part."""
        return SchemaPart(
            name="sagas",
            version=SAGA_SCHEMA_VERSION,
            tables=(self.states, self.compensations, self.tasks, *self.islands.all),
            needs=(self.audit.part,),
            migrations=saga_migrations(self.states, self.compensations, self.islands.runs, self.islands.steps),
        )
