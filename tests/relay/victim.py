"""A relay in a process of its own, made to be killed: `python -m tests.relay.victim <plan as JSON>`.

It publishes what waits, and dies by SIGKILL at the observation that the plan names.
"""

from __future__ import annotations

import os
import signal
import sys

import anyio
import msgspec

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.observer import Observation
from sagapost.outbox.relay import Relay
from tests.relay.shop import FAST

__all__ = ["Plan"]


class Plan(msgspec.Struct):
    """What the process does."""

    database_url: str
    amqp_url: str
    die_at: str
    """Name of an observation class."""


class Trap:
    """Dies at the first observation of a kind, as by a power failure."""

    def __init__(self, name: str) -> None:
        self._name = name

    def notify(self, event: Observation, /) -> None:
        """Look whether this is it."""
        if type(event).__name__ == self._name:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(plan: Plan) -> None:
    """Run the plan."""
    store, broker = PostgreSQLOutboxStore(plan.database_url), RabbitMQBroker(plan.amqp_url)
    with anyio.fail_after(60):
        await Relay(store, broker, settings=FAST, observer=Trap(plan.die_at)).run()


if __name__ == "__main__":
    anyio.run(main, msgspec.json.decode(sys.argv[1].encode(), type=Plan))
