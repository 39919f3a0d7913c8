"""The order flow of `benchmarks.sagas` as DBOS workflows, in a process of its own, where DBOS is installed.

Each of the four steps is a datasource transaction in the database of its own service, which writes the same rows and
has DBOS's checkpoint in it; the workflow's own state is in a fifth database on the same server, as DBOS has it.
Workflows are started directly and not through a queue, which would cost two more writes each. Prints a line when it
is ready, starts at a line on standard input, and prints the seconds that its workflows took.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import sqlalchemy as sa
from dbos import (  # pyright: ignore[reportMissingImports] - in an environment of its own
    DBOS,
    DBOSConfig,
    SetWorkflowID,
    SQLAlchemyDatasource,
)

plan: dict[str, Any] = json.loads(sys.stdin.readline())
SERVICES = ("orders", "stock", "payment", "shipping")
# The isolation level of our own transactions; DBOS's default, SERIALIZABLE, would add conflicts that are tried again.
LEVEL: Any = {"isolation_level": "READ COMMITTED"}
POOL = {"pool_size": plan["concurrency"], "max_overflow": 0}

PLACE = sa.text("INSERT INTO orders (id, item, cents, status) VALUES (:id, :item, :cents, 'placed')")
RESERVE = sa.text("UPDATE stock SET available = available - 1 WHERE item = :item AND available > 0")
RESERVATION = sa.text("INSERT INTO reservations (order_id, item) VALUES (:id, :item)")
PAY = sa.text("INSERT INTO payments (order_id, cents) VALUES (:id, :cents)")
SHIP = sa.text("INSERT INTO parcels (order_id, item) VALUES (:id, :item)")

STATEMENTS = {"orders": [PLACE], "stock": [RESERVE, RESERVATION], "payment": [PAY], "shipping": [SHIP]}


def configure() -> None:
    """Give DBOS its own database."""
    config: DBOSConfig = {
        "name": "orders",
        "system_database_url": plan["system"],
        # As many as there are workflows at a time, so that none waits for a connection or a thread.
        "sys_db_pool_size": plan["concurrency"],
        "max_executor_threads": plan["concurrency"],
        "executor_id": plan["executor"],
        "log_level": "ERROR",
    }
    DBOS(config=config)


def order(number: int) -> dict[str, Any]:
    """Return what an order is about."""
    return {"id": f"{plan['executor']}-{number}", "item": f"item-{number % plan['items']}", "cents": 1_000 + number}


def ready() -> None:
    """Say so, and wait for the word to begin."""
    sys.stdout.write("{}\n")
    sys.stdout.flush()
    sys.stdin.readline()


def run() -> None:
    """Run workflows in DBOS's thread pool."""
    sources = {name: SQLAlchemyDatasource.create(plan[name], engine_kwargs=POOL) for name in SERVICES}

    def transaction(name: str) -> Any:
        source = sources[name]

        def step(values: dict[str, Any]) -> None:
            for statement in STATEMENTS[name]:
                source.sql_session().execute(statement, values)

        return source.transaction(name=name, **LEVEL)(step)

    steps = [transaction(name) for name in SERVICES]

    def flow(values: dict[str, Any]) -> str:
        for step in steps:
            step(values)
        return str(values["id"])

    place_order = DBOS.workflow()(flow)
    DBOS.launch()
    place_order(order(-1))
    ready()
    began = time.monotonic()
    handles = []
    for number in range(plan["sagas"]):
        with SetWorkflowID(f"{plan['executor']}-{number}"):
            handles.append(DBOS.start_workflow(place_order, order(number)))
    for handle in handles:
        handle.get_result()
    report(began)


def report(began: float) -> None:
    """Print when the work began and ended, by the clock that all processes share."""
    sys.stdout.write(json.dumps({"began": began, "ended": time.monotonic()}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.getLogger("dbos").setLevel(logging.ERROR)
    configure()
    run()
    DBOS.destroy()
