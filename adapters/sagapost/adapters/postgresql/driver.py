"""The driver, or the sentence that says how to install it."""

try:
    import asyncpg
except ModuleNotFoundError as error:  # pragma: no cover - covered by tests/packaging in an environment without it
    from sagapost.core.errors import MissingExtraError

    raise MissingExtraError(module="asyncpg", extra="postgresql", purpose="The PostgreSQL adapter") from error

__all__ = ["asyncpg"]
