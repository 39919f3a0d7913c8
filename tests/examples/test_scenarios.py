"""Every scenario of StreamTech ends as it should, by the services' own data, and its books balance."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.streamtech.embedded import SOON, embedded
from examples.streamtech.scenarios import SCENARIOS, Outcome, run


def said(outcome: Outcome) -> list[str]:
    """Return the events of the business, in the order of the timeline."""
    names = (event.type.split(".") for event in outcome.timeline)
    return [words[-2] for words in names if words[0] != "sagapost"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_scenario_ends_as_it_should(tmp_path: Path, name: str) -> None:
    """What every service has in its own tables is what is expected, and no cent, record or point is off."""
    scenario = SCENARIOS[name]
    async with embedded(tmp_path, scenario.services, look_every=SOON) as deployment:
        outcome = await run(scenario, deployment, print)
        await deployment.stop()
    assert outcome.complaints == []
    assert outcome.found == outcome.expected != {}
    assert bool(outcome.timeline) == bool(scenario.services)
