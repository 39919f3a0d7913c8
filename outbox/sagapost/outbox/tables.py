"""The outbox tables, as SQLAlchemy `Table`s that can live in your own MetaData.

`outbox` is a plain FIFO: writers insert, the relay deletes what is confirmed, and nothing in it is updated on the good
path. Refused rows carry their own state; dead letters, scheduled events and ownership have tables of their own.
"""

from __future__ import annotations

import zlib
from typing import Any

from sqlalchemy import (
    JSON,
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
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

from sagapost.core.schema import SchemaPart, schema_table
from sagapost.outbox.doorbell import CreateDoorbell, DropDoorbell

__all__ = [
    "DEFAULT_PARTITIONS",
    "ENVELOPE_COLUMNS",
    "OUTBOX_SCHEMA_VERSION",
    "OutboxTables",
    "doorbell_channel",
    "key_hash",
]

OUTBOX_SCHEMA_VERSION = 1
DEFAULT_PARTITIONS = 32

_HASH_MASK = 0x7FFF


def key_hash(key: str) -> int:
    """Return the 15-bit hash that decides a row's partition: ``partition = hash % P``.

    The hash and not the partition is stored, so a writer needs no knowledge of P and P can change without rewriting
    rows. Rows without an ordering key hash their event id, which spreads them.
    """
    return zlib.crc32(key.encode()) & _HASH_MASK


class _Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, which never wraps."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the DDL name."""
        return "xid8"


# Reflection, and with it Alembic's autogenerate, warns of types it cannot name.
PGDialect.ischema_names["xid8"] = _Xid8  # pyright: ignore[reportArgumentType] - made for it


class _CurrentTransaction(FunctionElement[int]):
    """The inserting transaction's id, where the database has one."""

    inherit_cache = True


@compiles(_CurrentTransaction)
def _no_transaction_id(_element: _CurrentTransaction, _compiler: SQLCompiler, **_: Any) -> str:
    return "0"


@compiles(_CurrentTransaction, "postgresql")
def _postgresql_transaction_id(_element: _CurrentTransaction, _compiler: SQLCompiler, **_: Any) -> str:
    return "pg_current_xact_id()"


def doorbell_channel(outbox: Table) -> str:
    """Return the NOTIFY channel of an outbox table: distinct per schema and prefix, at most 63 bytes."""
    qualified = f"{outbox.schema or ''}.{outbox.name}"
    return f"sagapost_{zlib.crc32(qualified.encode()):08x}"


def _envelope() -> list[Column[Any]]:
    """The columns that hold an event; the same in every table that keeps one."""
    return [
        Column("event_id", Uuid, nullable=False),
        Column("key_hash", SmallInteger, nullable=False),
        Column("topic", String(255), nullable=False),
        Column("type", String(255), nullable=False),
        Column("source", String(255), nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("subject", Text),
        Column("datacontenttype", String(255)),
        Column("dataschema", Text),
        Column("correlationid", String(255)),
        Column("causationid", String(255)),
        Column("partitionkey", String(255)),
        Column("traceparent", String(255)),
        Column("tracestate", Text),
        Column("extensions", JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")),
        Column("data", LargeBinary, nullable=False),
    ]


ENVELOPE_COLUMNS: tuple[str, ...] = tuple(column.name for column in _envelope())
"""Names of the columns of `_envelope`, in their order: what moves when a row changes tables."""


class OutboxTables:
    """The tables of one outbox.

    :param metadata: your MetaData, so that Alembic's autogenerate sees the tables; default: one of our own.
    :param schema: database schema (PostgreSQL); default: the connection's search path.
    :param prefix: put before each table name, where names would clash.
    """

    def __init__(self, metadata: MetaData | None = None, *, schema: str | None = None, prefix: str = "") -> None:
        self.metadata = metadata if metadata is not None else MetaData()
        self.schema = schema
        self.prefix = prefix
        self.versions = schema_table(self.metadata, schema=schema, prefix=prefix)
        big = BigInteger().with_variant(Integer(), "sqlite")

        self.outbox = Table(
            f"{prefix}outbox",
            self.metadata,
            Column("position", big, Identity(always=True), primary_key=True),
            # The snapshot delta (docs/adr/0005) asks "which transactions became visible", so each row knows its own.
            Column(
                "xid", _Xid8().with_variant(Integer(), "sqlite"), nullable=False, server_default=_CurrentTransaction()
            ),
            *_envelope(),
            Column("attempts", SmallInteger, nullable=False, server_default="0"),
            Column("next_attempt_at", DateTime(timezone=True)),
            Column("last_error", Text),
            CheckConstraint(
                "(attempts = 0) = (next_attempt_at IS NULL) AND (attempts = 0) = (last_error IS NULL)",
                name=f"{prefix}outbox_refused_rows_say_why",
            ),
            CheckConstraint("key_hash >= 0", name=f"{prefix}outbox_key_hash_range"),
            schema=schema,
            sqlite_autoincrement=True,
        )
        # Stragglers (xid = ANY) and newcomers (xid >= x) are read along this index, so that a fetch never walks the
        # dead entries at the head of the primary key.
        Index(f"{prefix}outbox_xid_position", self.outbox.c.xid, self.outbox.c.position).ddl_if(dialect="postgresql")
        # Refused rows are few; the command line and the backlog count find them here.
        Index(
            f"{prefix}outbox_refused",
            self.outbox.c.next_attempt_at,
            postgresql_where=text("attempts > 0"),
            sqlite_where=text("attempts > 0"),
        )

        self.dead = Table(
            f"{prefix}outbox_dead",
            self.metadata,
            Column("position", big, primary_key=True, autoincrement=False),
            *_envelope(),
            Column("attempts", SmallInteger, nullable=False),
            Column("last_error", Text, nullable=False),
            Column("died_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            # A blocking letter holds back the later events of its key until an operator decides.
            Column("blocks_key", SmallInteger, nullable=False, server_default="0"),
            schema=schema,
        )
        Index(
            f"{prefix}outbox_dead_blocking",
            self.dead.c.partitionkey,
            postgresql_where=text("blocks_key = 1"),
            sqlite_where=text("blocks_key = 1"),
        )

        self.scheduled = Table(
            f"{prefix}outbox_scheduled",
            self.metadata,
            Column("id", big, Identity(always=True), primary_key=True),
            Column("deliver_at", DateTime(timezone=True), nullable=False),
            # A deadline is cancelled by (saga, name): `correlationid` of the envelope plus this name.
            Column("name", String(255)),
            *_envelope(),
            schema=schema,
            sqlite_autoincrement=True,
        )
        Index(f"{prefix}outbox_scheduled_due", self.scheduled.c.deliver_at)
        Index(f"{prefix}outbox_scheduled_event", self.scheduled.c.event_id, unique=True)
        Index(
            f"{prefix}outbox_scheduled_name",
            self.scheduled.c.correlationid,
            self.scheduled.c.name,
            postgresql_where=text("name IS NOT NULL"),
            sqlite_where=text("name IS NOT NULL"),
        )

        self.leases = Table(
            f"{prefix}outbox_leases",
            self.metadata,
            Column("partition", SmallInteger, primary_key=True, autoincrement=False),
            Column("owner", Uuid),
            # The fencing token: grows with every change of owner, checked by every terminal write.
            Column("token", BigInteger, nullable=False, server_default="0"),
            Column("expires_at", DateTime(timezone=True)),
            CheckConstraint("(owner IS NULL) = (expires_at IS NULL)", name=f"{prefix}outbox_lease_owner_expires"),
            schema=schema,
        )

        self.relays = Table(
            f"{prefix}outbox_relays",
            self.metadata,
            Column("relay", Uuid, primary_key=True),
            Column("expires_at", DateTime(timezone=True), nullable=False),
            # A relay that sleeps asks the next writer to ring; nobody rings while all are awake.
            Column("idle", SmallInteger, nullable=False, server_default="0"),
            schema=schema,
        )

        self.create_doorbell = CreateDoorbell(
            outbox=self.outbox, relays=self.relays, name=f"{prefix}outbox_ring", channel=doorbell_channel(self.outbox)
        )
        """For a migration that was generated, where tables come without their triggers:
        ``op.execute(tables.create_doorbell)``. Repeatable; does nothing where there is no NOTIFY."""
        self._attach_doorbell()

    def _attach_doorbell(self) -> None:
        """Create the trigger together with the table, and let its function go with it."""
        drop = DropDoorbell(schema=self.schema, name=self.create_doorbell.name)
        event.listen(self.outbox, "after_create", self.create_doorbell.execute_if(dialect="postgresql"))
        event.listen(self.outbox, "after_drop", drop.execute_if(dialect="postgresql"))

    @property
    def part(self) -> SchemaPart:
        """The tables as one installable part."""
        return SchemaPart(
            name="outbox",
            version=OUTBOX_SCHEMA_VERSION,
            tables=(self.relays, self.leases, self.outbox, self.dead, self.scheduled),
            supplements=(self.create_doorbell,),
        )
