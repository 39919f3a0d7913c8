"""Where the runs of orchestrated islands are kept: one row each, one for each step, one for each command sent."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.schema import conv

from sagapost.core.columns import json_document

__all__ = ["IslandTables"]

RUN_STATES = ("running", "rolling_back", "completed", "rolled_back")
STEP_STATES = ("pending", "waiting", "done", "skipped", "failed", "stuck", "rolling_back", "rolled_back")


class IslandTables:
    """The three tables, in the metadata of the ledger they belong to."""

    def __init__(self, metadata: MetaData, *, schema: str | None, prefix: str) -> None:
        self._metadata = metadata
        self._schema = schema
        self._prefix = prefix
        self._run = f"{schema}.{prefix}saga_island_runs.id" if schema else f"{prefix}saga_island_runs.id"
        self.runs = self._runs()
        self.steps = self._steps()
        self.commands = self._commands()
        Index(conv(f"{prefix}saga_island_runs_saga"), self.runs.c.service, self.runs.c.saga)

    def _runs(self) -> Table:
        return Table(
            f"{self._prefix}saga_island_runs",
            self._metadata,
            Column("id", String(36), primary_key=True),
            Column("service", String(255), nullable=False),
            Column("island", String(255), nullable=False),
            Column("saga", String(255), nullable=False),
            # Tells several runs of one island in one saga apart: one for each parcel of an order.
            Column("instance", String(255), nullable=False),
            # running -> completed; running or completed -> rolling_back -> rolled_back.
            Column("state", String(16), nullable=False),
            Column("data", json_document(), nullable=False),
            # Why it is rolled back, and whether because the whole saga is: then it does not announce a failure.
            Column("reason", Text),
            Column("by_saga", Boolean, nullable=False),
            Column("cause", String(255)),
            Column("partitionkey", String(255)),
            Column("started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("ended_at", DateTime(timezone=True)),
            UniqueConstraint(
                "service", "island", "saga", "instance", name=conv(f"{self._prefix}saga_island_runs_once")
            ),
            CheckConstraint(f"state IN {RUN_STATES}", name=conv(f"{self._prefix}saga_island_runs_known")),
            CheckConstraint(
                "(state IN ('completed', 'rolled_back')) = (ended_at IS NOT NULL)",
                name=conv(f"{self._prefix}saga_island_runs_ended"),
            ),
            CheckConstraint(
                "(state IN ('rolling_back', 'rolled_back')) = (reason IS NOT NULL)",
                name=conv(f"{self._prefix}saga_island_runs_say_why"),
            ),
            schema=self._schema,
        )

    def _steps(self) -> Table:
        return Table(
            f"{self._prefix}saga_island_steps",
            self._metadata,
            Column("run", String(36), primary_key=True),
            Column("step", String(255), primary_key=True),
            # In the order of declaration; steps of one parallel group share `stage`.
            Column("position", Integer, nullable=False),
            Column("stage", Integer, nullable=False),
            Column("state", String(16), nullable=False),
            Column("attempt", Integer, nullable=False),
            # A try ended without an answer: whether it had an effect is not known, so it is undone like one that had.
            Column("uncertain", Boolean, nullable=False),
            # Waits for an answer to its undoing, not to its command.
            Column("undo", Boolean, nullable=False),
            Column("reason", Text),
            # The open task about it, where a person must decide.
            Column("task", Integer),
            Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            ForeignKeyConstraint(["run"], [self._run], name=conv(f"{self._prefix}saga_island_steps_run")),
            CheckConstraint(f"state IN {STEP_STATES}", name=conv(f"{self._prefix}saga_island_steps_known")),
            CheckConstraint(
                "(state = 'stuck') = (task IS NOT NULL)", name=conv(f"{self._prefix}saga_island_steps_tasks")
            ),
            schema=self._schema,
        )

    def _commands(self) -> Table:
        return Table(
            f"{self._prefix}saga_island_commands",
            self._metadata,
            # The command's event id: the answer names it as its cause.
            Column("id", String(255), primary_key=True),
            Column("run", String(36), nullable=False),
            Column("step", String(255), nullable=False),
            Column("attempt", Integer, nullable=False),
            Column("undo", Boolean, nullable=False),
            Column("sent_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            ForeignKeyConstraint(["run"], [self._run], name=conv(f"{self._prefix}saga_island_commands_run")),
            schema=self._schema,
        )

    @property
    def all(self) -> tuple[Table, ...]:
        """In the order in which they can be created."""
        return (self.runs, self.steps, self.commands)
