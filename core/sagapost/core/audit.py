"""What operators decided: one table for every kind of decision, written in the transaction that carries it out.

Without the row there is no decision, and without the decision no row. A decision that removes or replaces something
keeps it here: what is discarded by mistake can be read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import (
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Identity,
    Index,
    Insert,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    Text,
    func,
    insert,
    literal,
    select,
)
from sqlalchemy.schema import conv

from sagapost.core.columns import big_integer
from sagapost.core.databases import aware
from sagapost.core.databases.kit import DatabaseKit
from sagapost.core.errors import ConfigurationError
from sagapost.core.migrations import AddTable, Migration
from sagapost.core.schema import SchemaPart, place, schema_table
from sagapost.core.where import Field, Fields, Selection, plain_text

__all__ = ["AUDIT_SCHEMA_VERSION", "DECISIONS", "Action", "AuditEntry", "AuditTables", "Decision", "DeskName"]

AUDIT_SCHEMA_VERSION = 3
"""A part that is added later begins beyond the versions that were there then, so that `db sql --from` creates it."""

Action: TypeAlias = Literal["redrive", "discard", "edit", "resolve", "rollback", "retry"]
DeskName: TypeAlias = Literal["dead", "parked", "tasks", "saga"]
"""What is decided about, as the command line calls it."""
DECISIONS = Fields(
    Field("id", "id", "number"),
    Field("actor", "actor"),
    Field("action", "action", "choice", get_args(Action)),
    Field("reason", "reason"),
    Field("desk", "desk", "choice", get_args(DeskName)),
    Field("place", "place"),
    Field("subject", "subject"),
    Field("event_id", "event_id"),
    Field("source", "source"),
    Field("type", "type"),
    Field("key", "partitionkey"),
    Field("correlationid", "correlationid"),
    Field("before", "at", "before"),
    Field("after", "at", "after"),
)
"""What can be asked about decisions."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who decides, and why.

    :raises ConfigurationError: if one of them is not said, or cannot be kept.
    """

    actor: str
    reason: str

    def __post_init__(self) -> None:
        if not self.actor.strip() or not self.reason.strip():
            raise ConfigurationError("Say who decides (actor) and why (reason): both are kept in the audit.")
        plain_text(self.actor, what="The actor")
        plain_text(self.reason, what="The reason")


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One decision about one thing."""

    id: int
    at: datetime
    actor: str
    action: Action
    reason: str
    desk: DeskName
    place: str | None
    """The inbox or the service; None: the outbox, or every service of a saga."""
    subject: str
    """What it was about: a position, a number, or the id of a saga."""
    did: str | None
    """What came of it, where the action does not say all."""
    event_id: str | None
    source: str | None
    type: str | None
    key: str | None
    correlationid: str | None
    original: str | None
    """Attributes of what was removed or replaced, as a JSON object; None if nothing was."""
    data: bytes | None
    """Its payload."""


class AuditTables:
    """The table of decisions, beside the other tables of a service or a tracker.

    :param metadata: your MetaData, so that Alembic's autogenerate sees the table; default: one of our own.
    :param schema: database schema (PostgreSQL); default: the connection's search path.
    :param prefix: put before the table's name, where names would clash.
    """

    def __init__(self, metadata: MetaData | None = None, *, schema: str | None = None, prefix: str = "") -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self.versions = schema_table(self.metadata, schema=schema, prefix=prefix)
        self.decisions = Table(
            f"{prefix}sagapost_audit",
            self.metadata,
            Column("id", big_integer(), Identity(always=True), primary_key=True),
            Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            Column("actor", Text, nullable=False),
            Column("action", String(16), nullable=False),
            Column("reason", Text, nullable=False),
            Column("desk", String(16), nullable=False),
            Column("place", String(255)),
            Column("subject", Text, nullable=False),
            Column("did", Text),
            # For people and filters. Attributes of foreign messages have no length limit.
            Column("event_id", Text),
            Column("source", Text),
            Column("type", Text),
            Column("partitionkey", Text),
            Column("correlationid", Text),
            # What a discard removed or an edit replaced.
            Column("original", Text),
            Column("data", LargeBinary),
            CheckConstraint("actor <> '' AND reason <> ''", name=conv(f"{prefix}sagapost_audit_is_signed")),
            CheckConstraint(
                "action NOT IN ('discard', 'edit') OR (original IS NOT NULL AND data IS NOT NULL)",
                name=conv(f"{prefix}sagapost_audit_keeps_what_was_changed"),
            ),
            schema=schema,
            sqlite_autoincrement=True,
        )
        # The history of one thing, and what was decided about one event wherever it was.
        Index(conv(f"{prefix}sagapost_audit_subject"), self.decisions.c.desk, self.decisions.c.subject)
        Index(conv(f"{prefix}sagapost_audit_event"), self.decisions.c.event_id)
        place(self)

    @property
    def part(self) -> SchemaPart:
        """The table as one installable part."""
        return SchemaPart(
            name="audit",
            version=AUDIT_SCHEMA_VERSION,
            tables=(self.decisions,),
            migrations=(Migration(3, (AddTable(self.decisions),)),),
        )

    # --- writing ---

    def record(self, decision: Decision, desk: DeskName, action: Action) -> Insert:
        """Return the INSERT of decisions; its parameters are rows with `subject` and whatever else is known.

        All rows of one execution need the same columns.
        """
        return insert(self.decisions).values(actor=decision.actor, reason=decision.reason, desk=desk, action=action)

    def record_rows(
        self,
        decision: Decision,
        desk: DeskName,
        action: Action,
        values: Mapping[str, ColumnElement[Any] | str | None],
        rows: Select[Any],
    ) -> Insert:
        """Return an INSERT that records a decision about each row of another table, without reading them.

        :param values: column -> expression over the columns of that table, or a constant.
        :param rows: a select of that table that says which rows, in which order; its columns are replaced.
        """
        given: dict[str, Any] = {
            "actor": decision.actor, "reason": decision.reason, "desk": desk, "action": action, **values
        }  # fmt: skip
        columns = self.decisions.c
        chosen = [
            value if isinstance(value, ColumnElement) else literal(value, columns[name].type)
            for name, value in given.items()
        ]
        return insert(self.decisions).from_select(
            list(given), rows.with_only_columns(*chosen, maintain_column_froms=True)
        )

    # --- reading ---

    def select(
        self, selection: Selection, kit: DatabaseKit, *, limit: int = 100, end: int | None = None
    ) -> Select[Any]:
        """Return the query for decisions, latest first; `end` is the number of the last one seen."""
        columns = self.decisions.c
        query = select(self.decisions).where(*selection.clauses(self.decisions, kit))
        if end is not None:
            query = query.where(columns.id < end)
        return query.order_by(columns.id.desc()).limit(limit)

    @staticmethod
    def entries(rows: Sequence[Any]) -> list[AuditEntry]:
        """Return the rows of `select` as entries."""
        return [
            AuditEntry(
                id=row.id,
                at=aware(row.at).astimezone(UTC),
                actor=row.actor,
                action=row.action,
                reason=row.reason,
                desk=row.desk,
                place=row.place,
                subject=row.subject,
                did=row.did,
                event_id=row.event_id,
                source=row.source,
                type=row.type,
                key=row.partitionkey,
                correlationid=row.correlationid,
                original=row.original,
                data=row.data,
            )
            for row in rows
        ]
