"""Sagas under fire, short; the long version is `python -m tests.chaos sagas`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.chaos.sagas import SERVER, Plan, run
from tests.servers.fixtures import OwnPostgreSQL, OwnRabbitMQ

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"


@pytest.mark.chaos
@pytest.mark.timeout(1_800 if LONG else 300)
async def test_every_saga_ends_completed_or_undone_to_the_cent(
    own_postgresql: OwnPostgreSQL, own_rabbitmq: OwnRabbitMQ, tmp_path: Path
) -> None:
    """Business and technical failures, late steps, deadlines; processes killed, connections cut.

    0 stuck; every effect of a completed order once; everything undone of a cancelled one; goods and money balance;
    ledger, tracker and the services' data say the same.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    plan = Plan() if LONG else Plan(sagas=120, failing=0.3, rate=40.0, consumers=1, kill_every=0.7, cut_every=1.5)
    outcome = await run(
        plan,
        own_postgresql(durable=LONG, settings=SERVER),
        own_rabbitmq(),
        rng=random.Random(seed),
        logs=tmp_path,
        say=print,
    )
    print(outcome)
    assert outcome.clean, outcome
    assert min(outcome.states["completed"], outcome.states["cancelled"]) > 0, outcome
