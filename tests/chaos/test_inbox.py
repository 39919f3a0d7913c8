"""End to end under fire, short; the long version is `python -m tests.chaos inbox`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.inbox import FAULTS, Plan, run
from tests.chaos.inbox_plan import SERVER, Mode
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"


@pytest.mark.chaos
@pytest.mark.timeout(1_800 if LONG else 300)
@pytest.mark.parametrize("mode", ["ordered", "unordered"] if LONG else [None])
async def test_one_effect_each_and_every_parked_message_accounted_for_whatever_breaks(
    mode: Mode | None, own_postgresql: OwnPostgreSQL, own_rabbitmq: OwnRabbitMQ, tmp_path: Path
) -> None:
    """Three replicas, poison, killers, strangers; processes killed, connections cut and stranded, servers restarted.

    0 lost, 0 doubled, 0 unexpected, one outgoing event for each effect, the order of each key in ordered mode. The
    short version breaks two things of the ten in one of the two modes, others in every run.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    modes: tuple[Mode, ...] = ("ordered", "unordered")
    faults = tuple(rng.sample(FAULTS, 2))
    short = Plan(
        rng.choice(modes), events=1_200, writers=2, faults=faults, rounds=1, calm=1.0, between=2.0, strangers=2
    )
    plan = Plan(mode) if mode is not None else short
    print(plan)
    postgresql = own_postgresql(durable=LONG, settings=SERVER)
    outcome = await run(plan, postgresql, own_rabbitmq(), rng=rng, logs=tmp_path, say=print)
    print(outcome)
    assert outcome.clean, outcome
