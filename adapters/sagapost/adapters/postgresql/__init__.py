"""PostgreSQL adapter, on asyncpg. Needs the extra `postgresql`."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.adapters.postgresql.server import create_engine
    from sagapost.adapters.postgresql.store import PostgreSQLOutboxStore
else:
    __getattr__, __dir__ = lazily(__name__, {"server": "create_engine", "store": "PostgreSQLOutboxStore"})

__all__ = ["PostgreSQLOutboxStore", "create_engine"]
