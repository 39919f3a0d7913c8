"""sqlite3's errors, translated at the edge by result code, never by text."""

from __future__ import annotations

import sqlite3

from sagapost.core.errors import SagapostError, StoreError, StoreRefusedError, StoreUnavailableError

__all__ = ["translate"]

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        # The file is not there yet, or its folder is not mounted: it may be there at the next attempt.
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_SCHEMA,
    }
)

_REFUSED = frozenset(
    {
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOTADB,
    }
)


def translate(error: Exception, *, where: str) -> SagapostError:
    """Return the sagapost error for an error raised by sqlite3."""
    if isinstance(error, SagapostError):
        return error
    code: int | None = getattr(error, "sqlite_errorcode", None)
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    # Extended result codes keep the primary one in their low byte.
    primary = None if code is None else code & 0xFF
    if primary in _UNAVAILABLE:
        return StoreUnavailableError(f"The database {where} cannot serve now ({name}): {error}")
    if primary in _REFUSED:
        return StoreRefusedError(
            f"The database {where} refused ({name}): {error}. Check that the path names a SQLite database and that "
            "this user may write the file and its folder."
        )
    return StoreError(f"The database {where} failed the call ({name}): {error}")
