"""The outbox tables, as SQLAlchemy `Table`s that can live in your own MetaData.

`outbox` is a plain FIFO: writers insert, the relay deletes what is confirmed, and nothing in it is updated on the good
path. Refused rows carry their own state; dead letters, scheduled events and ownership have tables of their own.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Any, assert_never

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    Identity,
    Index,
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
from sqlalchemy.schema import conv

from sagapost.core.audit import AuditTables
from sagapost.core.columns import big_integer, json_document, transaction_id
from sagapost.core.envelope import ATTRIBUTES, Attribute, Form
from sagapost.core.schema import SchemaPart, schema_table, tables_beside
from sagapost.outbox import rules
from sagapost.outbox.doorbell import CreateDoorbell, DropDoorbell
from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION, outbox_migrations
from sagapost.outbox.positions import AdvancePositions

__all__ = [
    "DEFAULT_PARTITIONS",
    "ENVELOPE_COLUMNS",
    "OutboxTables",
    "doorbell_channel",
    "doorbell_lock",
]

DEFAULT_PARTITIONS = 32


def doorbell_channel(outbox: Table) -> str:
    """Return the NOTIFY channel of an outbox table: distinct per schema and prefix, at most 63 bytes."""
    qualified = f"{outbox.schema or ''}.{outbox.name}"
    return f"sagapost_{zlib.crc32(qualified.encode()):08x}"


def doorbell_lock(outbox: Table) -> int:
    """Return the advisory lock that says that a relay of an outbox sleeps: 64 bits, distinct as the channel is."""
    qualified = f"sagapost doorbell {outbox.schema or ''}.{outbox.name}"
    return int.from_bytes(hashlib.blake2b(qualified.encode(), digest_size=8).digest(), signed=True)


def _envelope() -> list[Column[Any]]:
    """The columns that hold an event; the same in every table that keeps one.

    What has a default may be left out by those who write by plain SQL; `type`, `source` and `data` may not.
    """
    return [
        Column("event_id", Uuid, nullable=False, server_default=rules.NEW_ID),
        # NULL: the type.
        Column("topic", String(255)),
        *(_column(each) for each in ATTRIBUTES if each.name != "id"),
    ]


def _column(attribute: Attribute) -> Column[Any]:
    match attribute.form:
        case Form.NAME | Form.KEY:
            default = "application/json" if attribute.name == "datacontenttype" else None
            return Column(attribute.name, String(255), nullable=not attribute.required, server_default=default)
        case Form.TEXT:
            return Column(attribute.name, Text, nullable=not attribute.required)
        case Form.TIME:
            return Column(attribute.name, DateTime(timezone=True), nullable=False, server_default=func.now())
        case Form.DATA:
            return Column(attribute.name, LargeBinary, nullable=False)
        case Form.EXTENSIONS:
            return Column(attribute.name, json_document(none_as_null=True))
        case _ as never:
            assert_never(never)


ENVELOPE_COLUMNS: tuple[str, ...] = tuple(column.name for column in _envelope())
"""Names of the columns of `_envelope`, in their order: what moves when a row changes tables."""


def _slot() -> Column[int]:
    """The 15-bit number that decides a row's partition: ``partition = slot % P``.

    Reckoned by the database from the key, or from the id where there is no key, so that every writer agrees, whatever
    language it is written in (docs/adr/0015). The slot and not the partition is stored: P can change without
    rewriting rows.
    """
    return Column("slot", SmallInteger, Computed(rules.SLOT, persisted=True), nullable=False)


def _key_hash() -> Column[int]:
    """What writers of schema version 1 filled in. Read by nobody: they go on while a service is being deployed."""
    return Column("key_hash", SmallInteger)


def _dead_envelope() -> list[Column[Any]]:
    """The envelope of a dead letter: no rules, since this is where rows go that break them."""
    columns = _envelope()
    columns[0] = Column("event_id", Uuid, primary_key=True)
    return columns


def _envelope_rules(table: str) -> list[CheckConstraint]:
    """What the table refuses at once, instead of a relay that finds it unreadable later."""
    return [
        CheckConstraint(rules.NAMES, name=conv(f"{table}_names")),
        CheckConstraint(rules.TIME, name=conv(f"{table}_time")),
        CheckConstraint(rules.EXTENSIONS, name=conv(f"{table}_extensions")),
        CheckConstraint(rules.STORAGE, name=conv(f"{table}_storage")),
    ]


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

        self.outbox = self._outbox()
        self.dead = self._dead()
        self.scheduled = self._scheduled()
        self.leases = self._leases()
        self.relays = self._relays()
        self.create_doorbell = CreateDoorbell(
            outbox=self.outbox,
            name=f"{prefix}outbox_ring",
            channel=doorbell_channel(self.outbox),
            lock=doorbell_lock(self.outbox),
        )
        """For a migration that was generated, where tables come without their triggers:
        ``op.execute(tables.create_doorbell)``. Repeatable; does nothing where there is no NOTIFY."""
        self.advance_positions = AdvancePositions(outbox=self.outbox, dead=self.dead)
        """Lets positions go on behind those that are in use; see `AdvancePositions`."""
        self._attach_doorbell()
        self.audit = tables_beside(AuditTables, self)
        """What operators decided, here and in the inboxes and sagas beside it."""

    def _outbox(self) -> Table:
        table = Table(
            f"{self.prefix}outbox",
            self.metadata,
            Column("position", big_integer(), Identity(always=True), primary_key=True),
            # The snapshot delta (docs/adr/0005) asks "which transactions became visible", so each row knows its own.
            Column(
                "xid",
                transaction_id(),
                nullable=False,
                server_default=rules.CURRENT_TRANSACTION,
            ),
            _slot(),
            _key_hash(),
            *_envelope(),
            Column("attempts", SmallInteger, nullable=False, server_default="0"),
            Column("next_attempt_at", DateTime(timezone=True)),
            Column("last_error", Text),
            CheckConstraint(
                "(attempts = 0) = (next_attempt_at IS NULL) AND (attempts = 0) = (last_error IS NULL)",
                name=conv(f"{self.prefix}outbox_refused_rows_say_why"),
            ),
            CheckConstraint(rules.ATTEMPTS, name=conv(f"{self.prefix}outbox_attempts")),
            *_envelope_rules(f"{self.prefix}outbox"),
            schema=self.schema,
            sqlite_autoincrement=True,
        )
        # Stragglers (xid = ANY) and newcomers (xid >= x) are read along this index, so that a fetch never walks the
        # dead entries at the head of the primary key.
        Index(conv(f"{self.prefix}outbox_xid_position"), table.c.xid, table.c.position).ddl_if(dialect="postgresql")
        # Refused rows are few; the command line and the backlog count find them here.
        Index(
            conv(f"{self.prefix}outbox_refused"),
            table.c.next_attempt_at,
            postgresql_where=text("attempts > 0"),
            sqlite_where=text("attempts > 0"),
        )
        return table

    def _dead(self) -> Table:
        table = Table(
            f"{self.prefix}outbox_dead",
            self.metadata,
            # Both are the key: positions can begin again (a truncated table, a server whose sequence was never
            # replicated), and burying must not fail for a dead letter of former times.
            Column("position", big_integer(), primary_key=True, autoincrement=False),
            _slot(),
            _key_hash(),
            *_dead_envelope(),
            Column("attempts", SmallInteger, nullable=False),
            Column("last_error", Text, nullable=False),
            Column("died_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
            # A blocking letter holds back the later events of its key until an operator decides.
            Column("blocks_key", SmallInteger, nullable=False, server_default="0"),
            schema=self.schema,
        )
        Index(
            conv(f"{self.prefix}outbox_dead_blocking"),
            table.c.partitionkey,
            postgresql_where=text("blocks_key = 1"),
            sqlite_where=text("blocks_key = 1"),
        )
        return table

    def _scheduled(self) -> Table:
        table = Table(
            f"{self.prefix}outbox_scheduled",
            self.metadata,
            Column("id", big_integer(), Identity(always=True), primary_key=True),
            Column("deliver_at", DateTime(timezone=True), nullable=False),
            # A deadline is cancelled by (saga, name): `correlationid` of the envelope plus this name.
            Column("name", String(255)),
            _key_hash(),
            *_envelope(),
            CheckConstraint(rules.DELIVER_AT, name=conv(f"{self.prefix}outbox_scheduled_deliver_at")),
            *_envelope_rules(f"{self.prefix}outbox_scheduled"),
            schema=self.schema,
            sqlite_autoincrement=True,
        )
        Index(conv(f"{self.prefix}outbox_scheduled_due"), table.c.deliver_at)
        Index(conv(f"{self.prefix}outbox_scheduled_event"), table.c.event_id, unique=True)
        Index(
            conv(f"{self.prefix}outbox_scheduled_name"),
            table.c.correlationid,
            table.c.name,
            postgresql_where=text("name IS NOT NULL"),
            sqlite_where=text("name IS NOT NULL"),
        )
        return table

    def _leases(self) -> Table:
        return Table(
            f"{self.prefix}outbox_leases",
            self.metadata,
            Column("partition", SmallInteger, primary_key=True, autoincrement=False),
            # Held for as long as the owner has a row in `relays`.
            Column("owner", Uuid),
            # The fencing token: grows with every change of owner, checked by every terminal write.
            Column("token", BigInteger, nullable=False, server_default="0"),
            schema=self.schema,
        )

    def _relays(self) -> Table:
        # One row for each relay that lives. A heartbeat puts a new one in the place of the old, at the upper end of
        # the index: those who look for the living, or for those whose time is over since they looked last, pass over
        # no dead version that is older, however many an open transaction keeps (docs/adr/0021).
        return Table(
            f"{self.prefix}outbox_relays",
            self.metadata,
            Column("expires_at", DateTime(timezone=True), primary_key=True),
            Column("relay", Uuid, primary_key=True),
            schema=self.schema,
        )

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
            supplements=(self.create_doorbell, self.advance_positions),
            needs=(self.audit.part,),
            migrations=outbox_migrations(
                outbox=self.outbox,
                dead=self.dead,
                scheduled=self.scheduled,
                leases=self.leases,
                relays=self.relays,
                ring=self.create_doorbell,
            ),
        )
