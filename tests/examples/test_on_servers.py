"""StreamTech as it is deployed: PostgreSQL and RabbitMQ, and a process for each service."""

from __future__ import annotations

import os

import pytest

from examples.streamtech.processes import Site, processes
from examples.streamtech.scenarios import SCENARIOS, run
from examples.streamtech.services import ENROLMENT, FULFILMENT, ISLAND, REORDERED
from sagapost import Service

LONG = os.environ.get("SAGAPOST_TEST_CHAOS") == "long"
_LONG_ONLY = pytest.mark.skipif(not LONG, reason="SAGAPOST_TEST_CHAOS=long plays it on servers")


def stories(services: tuple[Service, ...]) -> list[str]:
    """Return the scenarios that these services play."""
    return [name for name, scenario in SCENARIOS.items() if scenario.services == services]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "services",
    [
        FULFILMENT,
        pytest.param(REORDERED, marks=_LONG_ONLY),
        pytest.param(ISLAND, marks=_LONG_ONLY),
        pytest.param(ENROLMENT, marks=_LONG_ONLY),
    ],
    ids=["fulfilment", "reordered", "island", "enrolment"],
)
async def test_the_scenarios_end_as_they_should_on_servers(site: Site, services: tuple[Service, ...]) -> None:
    """One after the other on the same running processes: every service's data, and the books of all of them."""
    assert stories(services)
    async with processes(site, services, together=True) as deployment:
        for name in stories(services):
            print(f"--- {name}")
            outcome = await run(SCENARIOS[name], deployment, print)
            assert outcome.complaints == [], name
            assert outcome.found == outcome.expected != {}
            assert outcome.view is not None
            assert outcome.view.state.over
        await deployment.stop()
