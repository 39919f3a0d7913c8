"""Whether positions go on behind the newest event, as seen by roles that may see it and by such that may not."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.schema import check_supplements, install_schema, supplement_remarks
from sagapost.outbox import OutboxTables


@pytest.fixture
async def clerk(postgresql_url: str) -> AsyncGenerator[str, None]:
    """The URL of a role with every right on the tables of an outbox, and none on the sequence of its positions."""
    tables, role = OutboxTables(), f"sagapost_clerk_{secrets.token_hex(4)}"
    engine = create_async_engine(postgresql_url)
    async with engine.begin() as connection:
        await connection.run_sync(install_schema, tables.versions, [tables.part])
        await connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'clerk'"))
        await connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"))
        await connection.execute(text("INSERT INTO outbox (type, source, data) VALUES ('t', 's', '')"))
    yield make_url(postgresql_url).set(username=role, password="clerk").render_as_string(hide_password=False)
    async with engine.begin() as connection:
        await connection.execute(text(f"DROP OWNED BY {role}"))
        await connection.execute(text(f"DROP ROLE {role}"))
    await engine.dispose()


async def test_a_role_that_may_not_see_the_sequence_is_told_which_right_it_lacks(
    clerk: str, postgresql_url: str
) -> None:
    """The tables are right all the same; with the right that is named nothing is left to say."""
    part = OutboxTables().part
    engine, owner = create_async_engine(clerk), create_async_engine(postgresql_url)
    async with engine.connect() as connection:
        await connection.run_sync(check_supplements, part, where="here")
        (said,) = [each for each in await connection.run_sync(supplement_remarks, part) if "GRANT" in each]
    grant = said.partition("To see it: ")[2]
    assert grant.startswith("GRANT SELECT ON SEQUENCE outbox_position_seq TO sagapost_clerk_")
    async with owner.begin() as connection:
        await connection.execute(text(grant))
    async with engine.connect() as connection:
        assert not [each for each in await connection.run_sync(supplement_remarks, part) if "GRANT" in each]
    await engine.dispose()
    await owner.dispose()
