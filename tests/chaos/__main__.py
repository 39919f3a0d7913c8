"""`python -m tests.chaos relay|inbox|orders|sagas`: the long versions, on servers started for the run."""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import anyio

from tests.chaos import inbox, orders, relay, sagas
from tests.chaos.inbox_plan import SERVER
from tests.servers.postgresql import PrivatePostgreSQL, private_postgresql
from tests.servers.rabbitmq import PrivateRabbitMQ, private_rabbitmq


def say(text: str) -> None:
    """Report progress."""
    sys.stdout.write(f"  {text}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point; 0 if every promise held."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    names = parser.add_subparsers(dest="name", required=True)
    relays = names.add_parser("relay", help="kill relays, cut and strand connections, restart servers under load")
    relays.add_argument("--events", type=int, default=200_000)
    relays.add_argument("--rounds", type=int, default=None, help="how often each fault is done, at most")
    relays.add_argument("--graceful", action="store_true", help="only restart two relays gracefully: no duplicates")
    inboxes = names.add_parser("inbox", help="end to end: kill relays and consumers, cut, strand and restart")
    inboxes.add_argument("--events", type=int, default=100_000)
    inboxes.add_argument("--mode", choices=["ordered", "unordered"], default="ordered")
    inboxes.add_argument("--batch", type=int, default=10, help="group commit of the consumers; 1: none")
    services = names.add_parser("orders", help="kill relays and consumers of two services")
    services.add_argument("--orders", type=int, default=1_000)
    services.add_argument("--kills", type=int, default=10, help="SIGKILLs of relays, and as many of consumers")
    services.add_argument("--restarts", action="store_true", help="restart RabbitMQ twice and PostgreSQL once as well")
    flows = names.add_parser("sagas", help="four services with money and goods: failures, deadlines, kills, cuts")
    flows.add_argument("--sagas", type=int, default=10_000)
    flows.add_argument("--rate", type=float, default=50.0, help="sagas begun in a second, at most")
    for each in (relays, inboxes, services, flows):
        each.add_argument("--seed", type=int, default=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(2**32)
    logs = Path(tempfile.mkdtemp(prefix="sagapost-chaos-"))
    # Drivers report every refused connection; here that is what was asked for.
    logging.basicConfig(filename=logs / "drivers.log")
    play = {"orders": _orders, "relay": _relay, "inbox": _inbox, "sagas": _sagas}[options.name]
    settings = {"inbox": SERVER, "sagas": sagas.SERVER}.get(options.name)
    with (
        private_postgresql(durable=True, settings=settings) as postgresql,
        private_rabbitmq() as rabbitmq,
    ):
        clean = play(options, postgresql, rabbitmq, seed, logs)
    say("clean" if clean else f"NOT clean; logs in {logs}")
    return 0 if clean else 1


def _orders(
    options: argparse.Namespace, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, seed: int, logs: Path
) -> bool:
    plan = orders.Plan(orders=options.orders, kills=options.kills, restarts=options.restarts)
    say(f"seed {seed}, {plan}")
    verdict = anyio.run(partial(orders.run, plan, postgresql, rabbitmq, rng=random.Random(seed), logs=logs, say=say))
    for name, value in asdict(verdict).items():
        say(f"{name}: {value:.1f}" if isinstance(value, float) else f"{name}: {value}")
    return verdict.clean


def _relay(
    options: argparse.Namespace, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, seed: int, logs: Path
) -> bool:
    plan = relay.Plan(events=options.events, rounds=options.rounds)
    if options.graceful:
        plan = replace(plan, relays=2, kill_every=None, faults=(relay.GRACEFUL,), settings={})
    say(f"seed {seed}, {plan}")
    outcome = anyio.run(partial(relay.run, plan, postgresql, rabbitmq, rng=random.Random(seed), logs=logs, say=say))
    for line in str(outcome).splitlines():
        say(line)
    if options.graceful:
        return outcome.clean and not outcome.report.duplicates
    return outcome.clean and outcome.slowest <= 10


def _inbox(
    options: argparse.Namespace, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, seed: int, logs: Path
) -> bool:
    plan = inbox.Plan(mode=options.mode, events=options.events, batch=options.batch)
    say(f"seed {seed}, {plan}")
    outcome = anyio.run(partial(inbox.run, plan, postgresql, rabbitmq, rng=random.Random(seed), logs=logs, say=say))
    for line in str(outcome).splitlines():
        say(line)
    return outcome.clean


def _sagas(
    options: argparse.Namespace, postgresql: PrivatePostgreSQL, rabbitmq: PrivateRabbitMQ, seed: int, logs: Path
) -> bool:
    plan = sagas.Plan(sagas=options.sagas, rate=options.rate)
    say(f"seed {seed}, {plan}")
    outcome = anyio.run(partial(sagas.run, plan, postgresql, rabbitmq, rng=random.Random(seed), logs=logs, say=say))
    for line in str(outcome).splitlines():
        say(line)
    return outcome.clean


if __name__ == "__main__":
    sys.exit(main())
