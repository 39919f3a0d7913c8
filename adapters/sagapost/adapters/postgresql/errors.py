"""asyncpg's errors, translated at the edge by class and SQLSTATE, never by text."""

from __future__ import annotations

import asyncpg

from sagapost.core.errors import SagapostError, StoreError, StoreRefusedError, StoreUnavailableError

__all__ = ["sqlstate", "translate"]

_UNAVAILABLE_CLASSES = frozenset({"08", "53", "55", "57", "58"})
"""Connection, resources, object not in the right state (starting up), operator intervention, system error."""

_TRANSIENT_CODES = frozenset({"40001", "40P01", "25006"})
"""Serialisation failure, deadlock, read-only (a failover in progress): the same call may succeed next time."""

_REFUSED_CLASSES = frozenset({"28", "3D", "42"})
"""Authorisation, no such database, and access rule or undefined object: a person must act."""


def sqlstate(error: asyncpg.PostgresError) -> str:
    """Return the five-character SQLSTATE, or an empty string where the server sent none."""
    code: str | None = getattr(error, "sqlstate", None)
    return code or ""


def translate(error: BaseException, *, where: str) -> SagapostError:
    """Return the sagapost error for an error raised by asyncpg or by the socket below it."""
    if isinstance(error, SagapostError):
        return error
    if isinstance(error, asyncpg.PostgresError):
        code = sqlstate(error)
        if code in _TRANSIENT_CODES or code[:2] in _UNAVAILABLE_CLASSES:
            return StoreUnavailableError(f"The database at {where} cannot serve now (SQLSTATE {code}): {error}")
        if code[:2] in _REFUSED_CLASSES:
            return StoreRefusedError(
                f"The database at {where} refused (SQLSTATE {code}): {error}. Check the user, password, database name "
                "and privileges in the database URL."
            )
        return StoreError(f"The database at {where} failed the call (SQLSTATE {code}): {error}")
    if isinstance(error, TimeoutError):
        return StoreUnavailableError(f"The database at {where} did not answer in time; the link was dropped.")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError | EOFError):
        return StoreUnavailableError(f"The database at {where} cannot be reached: {type(error).__name__}: {error}")
    return StoreError(f"The database at {where} failed: {type(error).__name__}: {error}")
