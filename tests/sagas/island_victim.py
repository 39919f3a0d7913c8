"""A service with an island in a process of its own, made to be killed: `python -m tests.sagas.island_victim DB AMQP`.

Consumer, relay and compensator run until the process is ended. Insurance is denied for every fifth order.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import anyio
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.inbox import BusinessFailure
from sagapost.sagas import Compensator, CompensatorSettings, StepContext
from tests.sagas import fulfilment as f
from tests.sagas.fulfilment import Fulfilment
from tests.sagas.recovery import Warehouse
from tests.sagas.virtual_time import VirtualTime

__all__ = ["island_of", "service_of"]


def service_of(database_url: str, amqp_url: str) -> Warehouse:
    """Return the service on its servers."""
    service = Warehouse(create_async_engine(database_url, pool_size=20), VirtualTime())
    service.broker = RabbitMQBroker(amqp_url, exchange="islands")
    return service


def island_of(service: Warehouse) -> Fulfilment:
    """Return the island, whose effects are named by command and order."""
    island = Fulfilment(service)
    island.effect_of = lambda command: f"{type(command).__name__} {command.order_id}"
    usual = island.answers[f.Insure]

    async def insure(command: Any, ctx: StepContext) -> object:
        if int(command.order_id.rpartition("-")[2]) % 5 == 0:
            raise BusinessFailure(f.InsuranceDenied(command.order_id))
        return await usual(command, ctx)

    island.answers[f.Insure] = insure
    return island


async def main(database_url: str, amqp_url: str) -> None:
    """Work until killed."""
    service = service_of(database_url, amqp_url)
    island = island_of(service)
    compensator = Compensator(
        service.sagas, service.engine, settings=CompensatorSettings(poll_interval=timedelta(milliseconds=50))
    )
    async with (
        service.relaying(),
        service.consuming(broker=service.broker, concurrency=4, max_crashes=100),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(compensator.run)
        sys.stdout.write(f"at work on {island.island.name}\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
