"""Tasks: what a saga waits for a person to decide. One row each, never deleted by the library."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.schema import conv

from sagapost.core.columns import big_integer, json_document

__all__ = ["task_table"]


def task_table(metadata: MetaData, *, schema: str | None, prefix: str) -> Table:
    """Return `saga_tasks` in the metadata."""
    table = Table(
        f"{prefix}saga_tasks",
        metadata,
        Column("id", big_integer(), Identity(always=True), primary_key=True),
        Column("service", String(255), nullable=False),
        Column("saga", String(255), nullable=False),
        # What kind of decision it is, and what it is about in this case.
        Column("name", String(255), nullable=False),
        Column("title", Text, nullable=False),
        Column("details", json_document(), nullable=False),
        # Name -> what is done when a person chooses it; see `sagapost.sagas.tasks`. Everything is prepared when the
        # task is opened, so that resolving it needs the database and no code of the service.
        Column("outcomes", json_document(), nullable=False),
        # The event whose handling opened the task, whole: `retry` handles it again.
        Column("step_event", String(255)),
        Column("topic", Text),
        Column("envelope", Text),
        Column("data", LargeBinary),
        # What is published, is published as the service would have.
        Column("source", String(255), nullable=False),
        Column("announce", Boolean, nullable=False),
        # It is about the undoing itself, so a rollback does not make it needless.
        Column("of_rollback", Boolean, nullable=False),
        # open -> resolved (a person chose), or withdrawn (the saga was rolled back first).
        Column("state", String(16), nullable=False),
        Column("opened_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
        # Until when a decision is expected; it is late after that, and nothing else happens.
        Column("due_at", DateTime(timezone=True)),
        Column("ended_at", DateTime(timezone=True)),
        Column("outcome", String(255)),
        Column("decided_by", Text),
        Column("note", Text),
        CheckConstraint("state IN ('open', 'resolved', 'withdrawn')", name=conv(f"{prefix}saga_tasks_known")),
        CheckConstraint("(state = 'open') = (ended_at IS NULL)", name=conv(f"{prefix}saga_tasks_ended")),
        CheckConstraint(
            "state <> 'resolved' OR (outcome IS NOT NULL AND decided_by IS NOT NULL AND note IS NOT NULL)",
            name=conv(f"{prefix}saga_tasks_decisions_are_signed"),
        ),
        schema=schema,
        sqlite_autoincrement=True,
    )
    Index(conv(f"{prefix}saga_tasks_saga"), table.c.service, table.c.saga)
    # What is listed all day long, among what is kept for years.
    Index(
        conv(f"{prefix}saga_tasks_open"),
        table.c.id,
        postgresql_where=text("state = 'open'"),
        sqlite_where=text("state = 'open'"),
    )
    return table
