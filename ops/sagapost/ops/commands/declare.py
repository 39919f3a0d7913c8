"""`sagapost declare module:service`: create the queues of services before anything is published or consumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import anyio
import typer

from sagapost.core.broker import Queue
from sagapost.core.errors import ConfigurationError
from sagapost.ops.adapters import make_broker
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.inbox_path import load_inboxes
from sagapost.ops.output import write_json, write_table

__all__ = ["declare"]


def declare(
    inboxes: Annotated[
        list[str],
        typer.Argument(metavar="MODULE:SERVICE...", help="The services, e.g. shop.warehouse:warehouse."),
    ],
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """Create the exchange, and each inbox's queue with its dead-letter queue and bindings, at SAGAPOST_BROKER_URL.

    A queue keeps events from the moment it exists, whether or not its service runs. So declare the queues of a new
    service, or of one that begins to take a new event, before anybody publishes to them. Safe to repeat: what is there
    stays, bindings that an inbox no longer asks for included. Exit code 2 if a queue exists with other arguments.
    """
    loaded = load(required=("broker_url",), env_file=env_file)
    queues = [inbox.queue for inbox in load_inboxes(inboxes)]
    for queue in queues:
        if not queue.topics:
            raise ConfigurationError(
                f"The inbox {queue.name!r} has no handlers, so its queue would be bound to nothing. Name the module "
                "that declares them, or import it where the inbox is made."
            )
    broker = make_broker(loaded)
    if not broker.capabilities.crosses_processes:
        raise ConfigurationError(
            "SAGAPOST_BROKER_URL names the memory broker, which lives in one process: nothing declared here would be "
            "there for another. Name a broker such as SAGAPOST_BROKER_URL=amqp://orders:password@localhost:5672/"
        )
    anyio.run(broker.declare, *queues)
    if as_json:
        write_json({"broker": broker.address, "queues": _as_json(queues)})
        return
    rows = [(queue.name, topic, "ordered" if queue.ordered else "-") for queue in queues for topic in _topics(queue)]
    write_table(("queue", "bound to", "order"), rows, styles={"queue": "cyan"})


def _topics(queue: Queue) -> Sequence[str]:
    return sorted(queue.topics)


def _as_json(queues: Sequence[Queue]) -> list[dict[str, object]]:
    return [{"name": queue.name, "topics": _topics(queue), "ordered": queue.ordered} for queue in queues]
