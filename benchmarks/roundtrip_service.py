"""The two services of `benchmarks.roundtrip`: Shop asks and Stock answers. Run as a module, it is Stock's consumer.

Each has a database of its own, a relay of its own and a consumer of its own; both write a row for each step.
"""

from __future__ import annotations

import signal
import sys

import anyio
import msgspec
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core import event
from sagapost.core.schema import install_schema
from sagapost.inbox import Consumer, Context, Inbox, InboxTables
from sagapost.outbox import Outbox, OutboxTables

__all__ = ["Answered", "Asked", "Servers", "ShopRow", "answered_by", "install", "shop", "shop_outbox", "stock"]


class ShopBase(DeclarativeBase):
    """Shop's models."""


class StockBase(DeclarativeBase):
    """Stock's models."""


class ShopRow(ShopBase):
    """A question, and whether it is answered."""

    __tablename__ = "questions"

    id: Mapped[str] = mapped_column(primary_key=True)
    answered: Mapped[bool] = mapped_column(default=False)


class StockRow(StockBase):
    """A question that Stock has seen."""

    __tablename__ = "seen_questions"

    id: Mapped[str] = mapped_column(primary_key=True)


@event("shop.asked.v1")
class Asked(msgspec.Struct):
    """An event of about 500 bytes."""

    question: str
    padding: str = "x" * 440


@event("stock.answered.v1")
class Answered(msgspec.Struct):
    """As large."""

    question: str
    padding: str = "x" * 440


shop_outbox = Outbox(source="https://shop.example", tables=OutboxTables(ShopBase.metadata))
shop = Inbox("shop", outbox=shop_outbox, tables=InboxTables(ShopBase.metadata))
_stock_outbox = Outbox(source="https://stock.example", tables=OutboxTables(StockBase.metadata))
stock = Inbox("stock", outbox=_stock_outbox, tables=InboxTables(StockBase.metadata))


@stock.on(Asked)
async def answer(event: Asked, ctx: Context) -> None:
    """Note the question and answer it, in one transaction."""
    ctx.session.add(StockRow(id=event.question))
    await ctx.publish(Answered(event.question), key=event.question)


answered_by: dict[str, str] = {}
"""Id of an answer's event -> the question; for whoever measures in Shop's process."""


@shop.on(Answered)
async def note(event: Answered, ctx: Context) -> None:
    """Note the answer."""
    row = await ctx.session.get_one(ShopRow, event.question)
    row.answered = True
    answered_by[ctx.event.id] = event.question


class Servers(msgspec.Struct):
    """Where a process finds them; comes on standard input, since arguments are visible to everybody."""

    database: str
    broker: str


async def install(url: str, inbox: Inbox) -> None:
    """Create all tables of one of the services in a fresh database."""
    base: type[DeclarativeBase] = ShopBase if inbox is shop else StockBase
    outbox = inbox.outbox
    if outbox is None:
        raise ValueError(f"the inbox {inbox.name} publishes nothing")
    parts = [outbox.tables.part, inbox.tables.part]
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: install_schema(sync, outbox.tables.versions, parts))
        await connection.run_sync(base.metadata.create_all)
    await engine.dispose()


async def main(servers: Servers) -> None:
    """Consume as Stock until SIGTERM."""
    engine = create_async_engine(servers.database, pool_size=16)
    consumer = Consumer(stock, engine=engine, broker=RabbitMQBroker(servers.broker))
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            tasks.start_soon(consumer.run)
            async for _ in received:
                consumer.stop()
                break
    await engine.dispose()


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.stdin.buffer.readline(), type=Servers))
