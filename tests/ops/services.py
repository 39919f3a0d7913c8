"""Small services as a user would write them, put into a folder and run by `sagapost consume`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine

from sagapost.core.naming import event
from sagapost.core.schema import install_schema
from sagapost.ops.settings import load_settings
from sagapost.ops.tables import tables_of
from sagapost.outbox import Outbox

__all__ = ["OrderPlaced", "place_orders", "prepare", "write_service"]

TYPE = "tests.order-placed.v1"

HEADER = f'''
from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import anyio

from sagapost.core import event
from sagapost.inbox import Context, Inbox, Reject, SyncContext
from sagapost.outbox import Outbox

inbox = Inbox("warehouse", outbox=Outbox(source="urn:warehouse"))


@event("{TYPE}")
@dataclass
class OrderPlaced:
    number: int


'''

HANDLERS = {
    "logs": """
@inbox.on(OrderPlaced)
async def handle(order: OrderPlaced, ctx: Context) -> None:
    ctx.log.info("order %d handled", order.number)
""",
    "waits": """
@inbox.on(OrderPlaced)
async def handle(order: OrderPlaced, ctx: Context) -> None:
    ctx.log.info("order %d begun", order.number)
    while not Path("go").exists():
        await anyio.sleep(0.01)
    ctx.log.info("order %d handled", order.number)
""",
    "rejects": """
@inbox.on(OrderPlaced)
async def handle(order: OrderPlaced, ctx: Context) -> None:
    if order.number % 2:
        raise Reject(f"order {order.number} is odd")
    ctx.log.info("order %d handled", order.number)
""",
    "blocks": """
@inbox.on(OrderPlaced)
def handle(order: OrderPlaced, ctx: SyncContext) -> None:
    ctx.log.info("order %d begun", order.number)
    threading.Event().wait()
""",
}


@event(TYPE)
@dataclass
class OrderPlaced:
    """What the services above listen to."""

    number: int


def write_service(folder: Path, kind: str) -> str:
    """Write the module `shop.py` into the folder; return the path of its inbox."""
    (folder / "shop.py").write_text(HEADER + HANDLERS[kind])
    return "shop:inbox"


def prepare(folder: Path) -> dict[str, str]:
    """Make a database with the tables in the folder; return the settings of a process that does everything."""
    url = f"sqlite:///{folder / 'shop.db'}"
    engine = create_engine(url)
    tables = tables_of(load_settings().settings)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    with engine.begin() as connection:
        install_schema(connection, tables.versions, tables.parts)
    engine.dispose()
    return {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_BROKER_URL": "memory://", "SAGAPOST_RELAY_POLL_INTERVAL": "20ms"}


def place_orders(settings: dict[str, str], *numbers: int) -> list[str]:
    """Publish an event for each number, in one transaction; return their ids."""
    engine = create_engine(settings["SAGAPOST_DATABASE_URL"])
    outbox = Outbox(source="urn:orders")
    with engine.begin() as connection:
        ids = [outbox.publish(connection, OrderPlaced(number), key=str(number)).id for number in numbers]
    engine.dispose()
    return ids
