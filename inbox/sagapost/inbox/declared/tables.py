"""The inbox tables, as SQLAlchemy `Table`s that can live in your own MetaData.

`inbox_seen` remembers what was handled; `inbox_parked` keeps what could not be, with the reason; `inbox_attempts`
knows which messages were being handled when a process died; `inbox_types` knows what each consumer takes, so that
versions that run side by side know of each other.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.schema import conv

from sagapost.core.audit import AuditTables
from sagapost.core.columns import big_integer
from sagapost.core.schema import SchemaPart, place, schema_table, tables_beside
from sagapost.inbox.declared.migrations import inbox_migrations

__all__ = ["INBOX_SCHEMA_VERSION", "InboxTables"]

INBOX_SCHEMA_VERSION = 3


class InboxTables:
    """The tables of the inboxes of one database; several consumers may share them.

    :param metadata: your MetaData, so that Alembic's autogenerate sees the tables; default: one of our own.
    :param schema: database schema (PostgreSQL); default: the connection's search path.
    :param prefix: put before each table name, where names would clash.
    """

    def __init__(self, metadata: MetaData | None = None, *, schema: str | None = None, prefix: str = "") -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self.versions = schema_table(self.metadata, schema=schema, prefix=prefix)

        self.consumers = self._consumers()
        self.types = self._types()
        self.seen = self._seen()
        self.parked = self._parked()
        self.attempts = self._attempts()
        self.audit = tables_beside(AuditTables, self)
        """What operators decided about parked messages."""
        place(self)

    def _consumers(self) -> Table:
        # The consumer's name would be repeated in every row and index entry of `inbox_seen`; two bytes stand for it.
        return Table(
            f"{self.prefix}inbox_consumers",
            self.metadata,
            Column("id", SmallInteger().with_variant(Integer(), "sqlite"), Identity(always=True), primary_key=True),
            Column("name", String(255), nullable=False),
            Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            UniqueConstraint("name", name=conv(f"{self.prefix}inbox_consumers_name_key")),
            schema=self.schema,
        )

    def _types(self) -> Table:
        # Which version takes what: a type that nobody has ever taken, or that a newer start than one's own does, is
        # still to come; one that only older starts took was removed.
        return Table(
            f"{self.prefix}inbox_types",
            self.metadata,
            Column("consumer", SmallInteger, primary_key=True, autoincrement=False),
            Column("type", String(255), primary_key=True),
            # When a process that takes it started last.
            Column("known_at", DateTime(timezone=True), nullable=False),
            schema=self.schema,
        )

    def _seen(self) -> Table:
        table = Table(
            f"{self.prefix}inbox_seen",
            self.metadata,
            Column("consumer", SmallInteger, primary_key=True, autoincrement=False),
            # 16 bytes: see `core.identity`. Keys of time-ordered ids sort by time, so inserts go to the right
            # edge of this index, whatever its size.
            Column("key", LargeBinary, primary_key=True),
            Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            schema=self.schema,
        )
        # Pruning walks the oldest rows of a consumer along this index and nothing else.
        Index(conv(f"{self.prefix}inbox_seen_age"), table.c.consumer, table.c.seen_at)
        return table

    def _parked(self) -> Table:
        table = Table(
            f"{self.prefix}inbox_parked",
            self.metadata,
            # The order of parking, which within a key is the order of delivery.
            Column("id", big_integer(), Identity(always=True), primary_key=True),
            Column("consumer", SmallInteger, nullable=False),
            Column("key", LargeBinary, nullable=False),
            # waiting: due at next_attempt_at. behind: an earlier message of its ordering key is parked. dead: an
            # operator decides.
            Column("state", String(8), nullable=False),
            Column("reason", String(32), nullable=False),
            Column("error", Text, nullable=False),
            Column("traceback", Text),
            # Rounds that failed, and rounds whose end was never recorded: the process died.
            Column("attempts", Integer, nullable=False, server_default="0"),
            Column("crashes", Integer, nullable=False, server_default="0"),
            # While a round runs: `claimed`, and `next_attempt_at` is when its claim lapses. The token grows with each
            # claim, and whoever concludes a round must still hold it.
            Column("claimed", SmallInteger, nullable=False, server_default="0"),
            Column("token", BigInteger, nullable=False, server_default="0"),
            Column("next_attempt_at", DateTime(timezone=True)),
            # Parked by an ordered consumer: later messages of the same ordering key wait for this one.
            Column("ordered", SmallInteger, nullable=False, server_default="0"),
            Column("parked_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            # For people and filters; `envelope` and `data` are what is handled again. Unlike ours, the attributes of
            # foreign messages have no length limit.
            Column("topic", Text, nullable=False),
            Column("event_id", Text),
            Column("source", Text),
            Column("type", Text),
            Column("time", DateTime(timezone=True)),
            Column("correlationid", Text),
            Column("partitionkey", Text),
            # Every attribute as JSON in ASCII: foreign ones have text that no column takes (NUL, lone surrogates).
            Column("envelope", Text, nullable=False),
            Column("data", LargeBinary, nullable=False),
            CheckConstraint("state IN ('waiting', 'behind', 'dead')", name=conv(f"{self.prefix}inbox_parked_states")),
            CheckConstraint(
                "(state = 'waiting') = (next_attempt_at IS NOT NULL)",
                name=conv(f"{self.prefix}inbox_parked_waits_until"),
            ),
            CheckConstraint(
                "state <> 'behind' OR ordered = 1", name=conv(f"{self.prefix}inbox_parked_behind_is_ordered")
            ),
            schema=self.schema,
            sqlite_autoincrement=True,
        )
        self._index_parked(table)
        return table

    def _index_parked(self, table: Table) -> None:
        Index(conv(f"{self.prefix}inbox_parked_key"), table.c.consumer, table.c.key, unique=True)
        Index(
            conv(f"{self.prefix}inbox_parked_due"),
            table.c.consumer,
            table.c.next_attempt_at,
            postgresql_where=text("state = 'waiting'"),
            sqlite_where=text("state = 'waiting'"),
        )
        # Asked on every delivery of an ordered consumer: is anything of this ordering key parked?
        Index(
            conv(f"{self.prefix}inbox_parked_order"),
            table.c.consumer,
            table.c.partitionkey,
            table.c.id,
            postgresql_where=text("ordered = 1"),
            sqlite_where=text("ordered = 1"),
        )

    def _attempts(self) -> Table:
        return Table(
            f"{self.prefix}inbox_attempts",
            self.metadata,
            Column("consumer", SmallInteger, primary_key=True, autoincrement=False),
            Column("key", LargeBinary, primary_key=True),
            # Begun and not ended: written before a redelivered message is handled, deleted with its outcome.
            Column("started", Integer, nullable=False),
            Column("last_started_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            schema=self.schema,
        )

    @property
    def part(self) -> SchemaPart:
        """The tables as one installable part."""
        return SchemaPart(
            name="inbox",
            version=INBOX_SCHEMA_VERSION,
            tables=(self.consumers, self.types, self.seen, self.parked, self.attempts),
            needs=(self.audit.part,),
            migrations=inbox_migrations(self.types, self.consumers, self.audit),
        )
