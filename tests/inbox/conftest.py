"""Databases and brokers for the inbox: every test that touches tables runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sagapost.adapters.memory import MemoryBroker


@pytest.fixture(params=["sqlite", "postgresql"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'service.db'}"
        engine = create_async_engine(url)
    else:
        url = request.getfixturevalue("postgresql_url")
        engine = create_async_engine(url, pool_size=20)
    yield engine
    await engine.dispose()


@pytest.fixture
async def postgresql_engine(postgresql_url: str) -> AsyncIterator[AsyncEngine]:
    """An empty PostgreSQL database."""
    engine = create_async_engine(postgresql_url, pool_size=20)
    yield engine
    await engine.dispose()


@pytest.fixture
def broker() -> MemoryBroker:
    """A broker within the test."""
    return MemoryBroker()
