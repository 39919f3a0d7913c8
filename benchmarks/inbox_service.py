"""The service that `benchmarks.inbox` measures: its tables, its event, its handler, and filling its queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.core import Event, event, new_id
from sagapost.core.broker import Broker, Confirmed, Outgoing, Queue
from sagapost.core.schema import install_schema
from sagapost.inbox import Context, Inbox, InboxTables, Reject
from sagapost.outbox import Outbox, OutboxTables

__all__ = ["QUEUE", "Base", "OrderPlaced", "OrderRow", "events", "fill", "inbox", "install", "outbox"]

EVENT_TYPE = "orders.order-placed.v1"
_PADDING = "x" * 400


class Base(DeclarativeBase):
    """The service's models."""


class OrderRow(Base):
    """What every consumer here writes for a message."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    amount: Mapped[int]


@event(EVENT_TYPE)
class OrderPlaced(msgspec.Struct):
    """An event of about 500 bytes."""

    order_id: str
    customer: str
    amount: int
    note: str


outbox = Outbox(source="https://warehouse.example", tables=OutboxTables(Base.metadata))
inbox = Inbox("warehouse", outbox=outbox, tables=InboxTables(Base.metadata))


@inbox.on(OrderPlaced)
async def reserve(event: OrderPlaced, ctx: Context) -> None:
    """Add one ORM row, as the hand-written consumer does; a negative amount is refused."""
    if event.amount < 0:
        raise Reject("a negative amount")
    ctx.session.add(OrderRow(id=event.order_id, customer=event.customer, amount=event.amount))


QUEUE: Queue = inbox.queue


def events(count: int, *, foreign: bool = False, bad_in: int = 0) -> list[Event]:
    """Return events of about 500 bytes each; `foreign` ids are random, as of a producer that knows no UUIDv7.

    :param bad_in: one in so many is refused by the handler.
    """
    encode = msgspec.json.Encoder().encode
    now = datetime.now(UTC)
    made: list[Event] = []
    for number in range(count):
        id_ = str(uuid4()) if foreign else new_id()
        data = encode(
            OrderPlaced(id_, f"customer-{number % 1_000}", -1 if bad_in and number % bad_in == 0 else number, _PADDING)
        )
        made.append(Event(id=id_, source="https://orders.example", type=EVENT_TYPE, time=now, data=data))
    return made


async def fill(broker: Broker, messages: Sequence[Event]) -> None:
    """Publish the events to the service's queue and wait until the broker has them."""
    await broker.declare(QUEUE)
    async with broker.publisher() as publisher:
        for start in range(0, len(messages), 1_000):
            batch = [Outgoing(message, message.type) for message in messages[start : start + 1_000]]
            results = await (await publisher.send(batch)).wait()
            if any(not isinstance(result, Confirmed) for result in results):
                raise RuntimeError("the broker did not take all messages")


async def install(url: str) -> None:
    """Create all tables in a fresh database."""
    engine = create_async_engine(url)
    parts = [outbox.tables.part, inbox.tables.part]
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: install_schema(sync, outbox.tables.versions, parts))
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
