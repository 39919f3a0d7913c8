"""For every test: asyncio as the event loop, and real servers as fixtures."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers.fixtures", "tests.processes.shared"]

# How long it takes to think up an example says how busy the machine is, and nothing about what is tested.
settings.register_profile("sagapost", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sagapost")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that the drivers run on."""
    return "asyncio"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: a test of a minute at the end would leave all processes but one with nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("chaos") is None)
