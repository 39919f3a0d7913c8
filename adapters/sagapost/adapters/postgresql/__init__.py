"""PostgreSQL adapter, on asyncpg. Needs the extra `postgresql`."""

try:
    import asyncpg  # pyright: ignore[reportUnusedImport] # noqa: F401 - probes for the extra
except ModuleNotFoundError as error:  # pragma: no cover - covered by tests/packaging in an environment without it
    from sagapost.core.errors import MissingExtraError

    raise MissingExtraError(module="asyncpg", extra="postgresql", purpose="The PostgreSQL adapter") from error

from sagapost.adapters.postgresql.server import create_engine
from sagapost.adapters.postgresql.store import PostgreSQLOutboxStore

__all__ = ["PostgreSQLOutboxStore", "create_engine"]
