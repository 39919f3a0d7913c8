"""The main job under fire, short; the long version is `python -m tests.chaos orders --restarts`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.orders import Plan, run
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"


@pytest.mark.chaos
@pytest.mark.timeout(900 if LONG else 240)
@pytest.mark.parametrize("restarts", [False, True], ids=["kills", "kills-and-restarts"])
async def test_orders_survive_killed_processes_and_restarted_servers(
    own_postgresql: OwnPostgreSQL, own_rabbitmq: OwnRabbitMQ, tmp_path: Path, *, restarts: bool
) -> None:
    """Nothing is lost, doubled or invented when relays, consumers and servers end at random moments."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    plan = Plan(orders=1_000, kills=10, restarts=restarts) if LONG else Plan(orders=100, kills=2, restarts=restarts)
    verdict = await run(
        plan, own_postgresql(durable=LONG), own_rabbitmq(), rng=random.Random(seed), logs=tmp_path, say=print
    )
    assert verdict.clean, verdict
    assert verdict.orders >= plan.orders
