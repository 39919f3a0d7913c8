"""For every test: asyncio as the event loop, and real servers as fixtures."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.servers.fixtures"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that the drivers run on."""
    return "asyncio"
