"""The databases and drivers that the kits are held to."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.databases import drop_useless_connections
from tests.conformance.databases.bed import Bed, metadata


@pytest.fixture(params=["asyncpg", "psycopg", "aiosqlite", "pysqlite"])
async def bed(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Bed, None]:
    """Each in turn, with the tables."""
    driver: str = request.param
    if driver in {"aiosqlite", "pysqlite"}:
        url = make_url(f"sqlite+{driver}:///{tmp_path / 'kit.db'}")
    else:
        url = make_url(request.getfixturevalue("postgresql_url")).set(drivername=f"postgresql+{driver}")
    made = Bed(create_async_engine(url) if driver in {"asyncpg", "aiosqlite"} else create_engine(url))
    drop_useless_connections(made.engine)
    await made.run(metadata.create_all)
    yield made
    await made.dispose()
