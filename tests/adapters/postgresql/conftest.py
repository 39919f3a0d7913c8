"""A database with an outbox, and everything that the tests of the PostgreSQL store do with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.adapters.postgresql.outbox import OutboxDatabase, installed


@pytest.fixture
async def database(postgresql_url: str) -> AsyncGenerator[OutboxDatabase, None]:
    """An installed outbox, empty and without statistics."""
    async with installed(postgresql_url) as made:
        yield made
