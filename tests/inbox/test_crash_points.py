"""SIGKILL at every step between a delivery and its acknowledgement: nothing lost, nothing doubled, order kept.

The steps are the classes of `sagapost.inbox.declared.observations`: a new one is killed at without anybody adding it
here, and fails the test if the scenario never reaches it.
"""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path

import pytest

from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.settings import GROUPS
from tests.inbox.harness import an_event
from tests.inbox.killing import Victim


def steps() -> list[str]:
    """Return the names of all steps, in the order of their definition."""
    classes = [
        value for value in vars(obs).values() if isinstance(value, type) and issubclass(value, obs.DeliveryStep)
    ]
    return [step.__name__ for step in classes if step is not obs.DeliveryStep]


ORDERS = [f"{key}-{n}" for n in range(6) for key in ("a", "b", "retry", "c")]
"""Four keys with six messages each; those of `retry` fail in their first two rounds and hold each other back."""


BEHIND = [f"wait-{n}" for n in range(10)]
"""A key whose first message waits for a second round, and with a batch of 8 others that find it parked."""


IN_A_GROUP = ["Started", "Claimed", "HandlerReturned", "Written", "GroupCommitted", "Handled", "Acknowledged"]
"""What comes within a group with savepoints, and after its commit."""


async def _kill_and_recover(victim: Victim, step: str, *, in_group: bool = False) -> None:
    orders = [*BEHIND, *ORDERS] if step == obs.GroupParked.__name__ else ORDERS
    await victim.prepare(orders, [an_event({"x": 1}, type="nobody.takes-this.v1")], copies=2)
    if step == obs.AttemptBegun.__name__:
        # Reached only by what was in flight when a process died before.
        assert await victim.run(die_at=obs.Written.__name__) == -signal.SIGKILL
    assert await victim.run(die_at=step, in_group=in_group) == -signal.SIGKILL, f"never came to {step}"
    assert await victim.run() == 0
    written = await victim.written()
    lost, doubled = set(orders) - set(written), len(written) - len(set(written))
    assert (lost, doubled) == (set(), 0)
    assert await victim.published() == len(orders)
    by_key: dict[str, list[str]] = defaultdict(list)
    for order in written:
        by_key[order.rpartition("-")[0]].append(order)
    assert all(of_key == sorted(of_key) for of_key in by_key.values()), by_key
    assert await victim.parked() == []
    assert await victim.attempts_on_record() == 0


def _batch(step: str) -> int:
    if step == obs.GroupCommitted.__name__:
        return GROUPS
    return 8 if step.startswith("Group") else 1


@pytest.mark.parametrize("step", steps())
async def test_killed_at_any_step_with_real_servers(step: str, postgresql_url: str, amqp_url: str) -> None:
    """PostgreSQL and RabbitMQ: after the kill another process finishes the work."""
    await _kill_and_recover(Victim(postgresql_url, amqp_url, script="crash", batch=_batch(step)), step)


@pytest.mark.parametrize("step", steps())
async def test_killed_at_any_step_with_sqlite(step: str, tmp_path: Path) -> None:
    """SQLite, and a broker that delivers every message again after the kill."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'victim.db'}"
    if step == obs.AttemptBegun.__name__:
        pytest.skip("a broker that ends with the process counts no deliveries across processes")
    await _kill_and_recover(Victim(url, None, script="crash", batch=_batch(step)), step)


@pytest.mark.parametrize("step", IN_A_GROUP)
async def test_killed_within_a_group_with_savepoints(step: str, postgresql_url: str, amqp_url: str) -> None:
    """Between the savepoints of a group that some of its messages are already through, and after its commit."""
    victim = Victim(postgresql_url, amqp_url, script="crash", batch=GROUPS)
    await _kill_and_recover(victim, step, in_group=True)


def test_there_are_steps() -> None:
    """The list is not empty by mistake."""
    assert {"Received", "Claimed", "Handled", "Acknowledged", "GroupHandled", "Parked"} <= set(steps())
