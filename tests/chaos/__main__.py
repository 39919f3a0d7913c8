"""`python -m tests.chaos orders`: the long versions, on servers started for the run."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio

from tests.chaos.orders import Plan, run
from tests.servers.postgresql import private_postgresql
from tests.servers.rabbitmq import private_rabbitmq


def say(text: str) -> None:
    """Report progress."""
    sys.stdout.write(f"  {text}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point; 0 if nothing was lost, doubled or invented."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("name", choices=["orders"])
    parser.add_argument("--orders", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs of relays, and as many of consumers")
    parser.add_argument("--restarts", action="store_true", help="restart RabbitMQ twice and PostgreSQL once as well")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    plan = Plan(orders=options.orders, kills=options.kills, restarts=options.restarts)
    say(f"seed {seed}, {plan}")
    logs = Path(tempfile.mkdtemp(prefix="sagapost-chaos-"))
    with private_postgresql(durable=True) as postgresql, private_rabbitmq() as rabbitmq:
        verdict = anyio.run(partial(run, plan, postgresql, rabbitmq, rng=random.Random(seed), logs=logs, say=say))
    for name, value in asdict(verdict).items():
        say(f"{name}: {value:.1f}" if isinstance(value, float) else f"{name}: {value}")
    say("clean" if verdict.clean else f"NOT clean; logs in {logs}")
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
