"""The relay under fire, short; the long version is `python -m tests.chaos relay`."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.relay import FAULTS, GRACEFUL, Plan, run
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
RECOVERY_SECONDS = 10.0
"""The promise. The short version does not judge it: the machine has other things to do."""


@pytest.mark.chaos
@pytest.mark.timeout(1_800 if LONG else 240)
async def test_nothing_is_lost_invented_or_out_of_order_whatever_breaks(
    own_postgresql: OwnPostgreSQL, own_rabbitmq: OwnRabbitMQ, tmp_path: Path
) -> None:
    """Writers that roll back and commit late; relays killed every second, links cut and stranded, servers restarted.

    The short version breaks three things of the six, others in every run.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    faults = tuple(rng.sample(FAULTS, 3))
    short = Plan(events=6_000, faults=faults, rounds=1, let_start=True, calm=2.0, between=4.0)
    outcome = await run(
        Plan() if LONG else short, own_postgresql(durable=LONG), own_rabbitmq(), rng=rng, logs=tmp_path, say=print
    )
    print(outcome)
    assert outcome.clean, outcome
    if LONG:
        assert outcome.kills > 50
        assert outcome.slowest <= RECOVERY_SECONDS, outcome


@pytest.mark.chaos
@pytest.mark.timeout(900 if LONG else 240)
async def test_a_graceful_restart_of_each_relay_in_turn_doubles_nothing(
    own_postgresql: OwnPostgreSQL, own_rabbitmq: OwnRabbitMQ, tmp_path: Path
) -> None:
    """Two relay processes under load, each told to end with SIGTERM and replaced: not one event twice."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    plan = Plan(events=60_000, relays=2, kill_every=None, faults=(GRACEFUL,), settings={})
    outcome = await run(
        plan if LONG else replace(plan, events=3_000, rounds=1, calm=1.0, between=1.0),
        own_postgresql(durable=LONG),
        own_rabbitmq(),
        rng=random.Random(seed),
        logs=tmp_path,
        say=print,
    )
    print(outcome)
    assert outcome.clean, outcome
    assert outcome.report.duplicates.total() == 0, outcome
