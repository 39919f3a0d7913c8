"""Shared by the tests of the relay."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from sagapost.core.schema import install_schema
from tests.relay.shop import Shop


@pytest.fixture
async def shop(postgresql_url: str) -> AsyncGenerator[Shop, None]:
    """An installed outbox."""
    made = Shop(postgresql_url)
    async with made.engine.begin() as connection:
        await connection.run_sync(install_schema, made.tables.versions, [made.tables.part])
    yield made
    await made.engine.dispose()
