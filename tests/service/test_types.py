"""What an editor shows: services that are right have no error, and each of the usual mistakes has one.

mypy and pyright are each run once, strict, over all of it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.docs.test_readme import PROGRAMS

pytest.importorskip("mypy", reason="type checkers belong to another group of dependencies")
pytest.importorskip("pyright", reason="type checkers belong to another group of dependencies")

ROOT = Path(__file__).resolve().parents[2]

SHOP = """
from __future__ import annotations

from datetime import timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from sagapost import (
    BusinessFailure, CompensationContext, Context, Deadline, Service, StepContext, SyncContext, event,
)


@event("orders.order-placed.v1")
class OrderPlaced(msgspec.Struct):
    order: str


@event("orders.order-overdue.v1")
class OrderOverdue(msgspec.Struct):
    order: str


@event("warehouse.stock-reserved.v1")
class StockReserved(msgspec.Struct):
    order: str


IN_TIME = Deadline("in-time", OrderOverdue, after=timedelta(days=1))
warehouse = Service("warehouse", source="https://warehouse.example")


@warehouse.compensation(emits=[])
async def release(ctx: CompensationContext, *, order: str, units: int) -> None: ...


__all__ = [
    "AsyncConnection", "AsyncSession", "BusinessFailure", "CompensationContext", "Context", "IN_TIME", "OrderOverdue",
    "OrderPlaced", "Session", "StepContext", "StockReserved", "SyncContext", "release", "warehouse",
]
"""

RIGHT = """
from shop import *


@warehouse.on(OrderPlaced, emits=[StockReserved], compensation=release, deadlines=[IN_TIME])
async def reserve(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.on_rollback(release, order=placed.order, units=2)
    await ctx.deadline(IN_TIME, OrderOverdue(placed.order))
    published = await ctx.publish(StockReserved(placed.order), key=placed.order)
    print(published.id)


@warehouse.on(OrderPlaced, StockReserved, cancels=[IN_TIME])
async def either(event: OrderPlaced | StockReserved, ctx: Context) -> None:
    raise BusinessFailure(StockReserved(event.order))


@warehouse.on(StockReserved)
def in_a_thread(reserved: StockReserved, ctx: SyncContext) -> None:
    ctx.publish(OrderPlaced(reserved.order), key=reserved.order)


@warehouse.on("legacy.stock", payload=StockReserved)
async def by_name(reserved: StockReserved, ctx: StepContext) -> None: ...


@warehouse.on("audit.#")
async def anything(data: bytes, ctx: StepContext) -> None: ...


async def place(session: AsyncSession, connection: AsyncConnection, plain: Session) -> None:
    with warehouse.start("saga", keys={"order": 1}):
        print((await warehouse.publish(session, OrderPlaced("1"), key="1")).time)
        await warehouse.on_rollback(session, release, order="1", units=1)
    await warehouse.publish(connection, OrderPlaced("1"))
    print(warehouse.publish(plain, OrderPlaced("1")).id)
"""

MISTAKES = {
    "wrong event class": """
        @warehouse.on(OrderPlaced)  # wrong
        async def handle(event: StockReserved, ctx: StepContext) -> None: ...
    """,
    "one of two event classes": """
        @warehouse.on(OrderPlaced, OrderOverdue)  # wrong
        async def handle(event: OrderPlaced, ctx: StepContext) -> None: ...
    """,
    "missing parameter": """
        @warehouse.on(OrderPlaced)  # wrong
        async def handle(event: OrderPlaced) -> None: ...
    """,
    "missing await in a handler": """
        @warehouse.on(OrderPlaced)
        async def handle(event: OrderPlaced, ctx: StepContext) -> None:
            ctx.publish(StockReserved(event.order))  # wrong
    """,
    "missing await outside": """
        async def place(session: AsyncSession) -> None:
            warehouse.publish(session, OrderPlaced("1"))  # wrong
    """,
    "missing await on a connection": """
        async def place(connection: AsyncConnection) -> None:
            warehouse.publish(connection, OrderPlaced("1"))  # wrong
    """,
    "missing await of what undoes": """
        @warehouse.on(OrderPlaced)
        async def handle(event: OrderPlaced, ctx: StepContext) -> None:
            ctx.on_rollback(release, order="1", units=1)  # wrong
    """,
    "plain def with an asynchronous context": """
        @warehouse.on(OrderPlaced)  # wrong
        def handle(event: OrderPlaced, ctx: StepContext) -> None: ...
    """,
    "async def with a synchronous context": """
        @warehouse.on(OrderPlaced)  # wrong
        async def handle(event: OrderPlaced, ctx: SyncContext) -> None: ...
    """,
    "wrong context": """
        @warehouse.on(OrderPlaced)  # wrong
        async def handle(event: OrderPlaced, ctx: CompensationContext) -> None: ...
    """,
    "unknown option": """
        @warehouse.on(OrderPlaced, emit=[StockReserved])  # wrong
        async def handle(event: OrderPlaced, ctx: StepContext) -> None: ...
    """,
    "misspelt deadline": """
        @warehouse.on(OrderPlaced, cancels=["in-tyme"])  # wrong
        async def handle(event: OrderPlaced, ctx: StepContext) -> None: ...
    """,
    "another event than the deadline's": """
        @warehouse.on(OrderPlaced)
        async def handle(event: OrderPlaced, ctx: StepContext) -> None:
            await ctx.deadline(IN_TIME, StockReserved(event.order))  # wrong
    """,
    "wrong return": """
        @warehouse.on(OrderPlaced)  # wrong
        async def handle(event: OrderPlaced, ctx: StepContext) -> str:
            return event.order
    """,
    "key of another type": """
        async def place(session: AsyncSession) -> None:
            await warehouse.publish(session, OrderPlaced("1"), key=4711)  # wrong
    """,
    "argument of a compensation": """
        @warehouse.on(OrderPlaced)
        async def handle(event: OrderPlaced, ctx: StepContext) -> None:
            await ctx.on_rollback(release, order="1", units="two")  # wrong
    """,
    "compensation with a handler's context": """
        @warehouse.compensation()  # wrong
        async def undo(ctx: StepContext) -> None: ...
    """,
}


class Checked(NamedTuple):
    """What the two checkers said, as (file without its ending, line) of each error."""

    mypy: dict[tuple[str, int], str]
    pyright: dict[tuple[str, int], str]


def name_of(mistake: str) -> str:
    """Return the module that a mistake is in."""
    return "mistake_" + re.sub(r"\W", "_", mistake)


def run(*command: str, folder: Path) -> str:
    """Return what a type checker prints."""
    environment = {name: value for name, value in os.environ.items() if name != "MYPYPATH"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Both checkers' findings, in a folder with every module and the settings of an author who wants them strict."""
    folder = tmp_path_factory.mktemp("typed")
    modules = {"shop": SHOP, "right": RIGHT}
    modules |= {f"program_{number}": program.code for number, program in enumerate(PROGRAMS)}
    for mistake, code in MISTAKES.items():
        modules[name_of(mistake)] = "from shop import *\n\n\n" + textwrap.dedent(code)
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code.lstrip())
    front = str(ROOT / "front")
    (folder / "pyrightconfig.json").write_text(
        json.dumps(
            {
                "typeCheckingMode": "strict",
                "extraPaths": [front],
                "venvPath": str(Path(sys.prefix).parent),
                "venv": Path(sys.prefix).name,
                # Libraries that an author cannot change, and what is only declared here.
                "reportMissingTypeStubs": False,
                "reportUnknownMemberType": False,
                "reportUnknownVariableType": False,
                "reportUnknownArgumentType": False,
                "reportUnusedFunction": False,
            }
        )
    )
    said = json.loads(run(sys.executable, "-m", "pyright", "--outputjson", folder=folder))
    pyright = {
        (Path(each["file"]).stem, each["range"]["start"]["line"] + 1): each["message"]
        for each in said["generalDiagnostics"]
        if each["severity"] == "error"
    }
    mypy: dict[tuple[str, int], str] = {}
    # With the settings of this checkout, for the cache that `make typecheck` uses.
    files = [str(folder / f"{name}.py") for name in modules]
    for line in run(sys.executable, "-m", "mypy", "--no-error-summary", *files, folder=ROOT).splitlines():
        found = re.match(r".*?(\w+)\.py:(\d+): error: (.*)", line)
        if found:
            mypy[found[1], int(found[2])] = found[3]
    return Checked(mypy, pyright)


def test_what_is_right_passes_both(checked: Checked) -> None:
    """Every program of the documents, and a service that uses what the front door gives."""
    mistakes = {name_of(mistake) for mistake in MISTAKES}
    for found in checked:
        assert {where: said for where, said in found.items() if where[0] not in mistakes} == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_where_it_is_made(mistake: str, checked: Checked) -> None:
    """By one of the two at least, on the line where it is, and nothing else is found in that module."""
    lines = ("from shop import *\n\n\n" + textwrap.dedent(MISTAKES[mistake])).splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.endswith("# wrong"))
    found = {where[1] for each in checked for where in each if where[0] == name_of(mistake)}
    assert found
    assert found <= {line, line + 1}, {
        where: said for each in checked for where, said in each.items() if where[0] == name_of(mistake)
    }
