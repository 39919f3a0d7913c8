"""What differs from database to database, in one object for each: `kit_of(engine)`."""

from sagapost.core.databases.dropping import drop_useless_connections
from sagapost.core.databases.failures import (
    Conflict,
    Failure,
    MissingTable,
    Other,
    Outage,
    ReadOnly,
    Refused,
    Unavailable,
    code_of,
    driver_error,
    wrapped,
)
from sagapost.core.databases.kit import Batch, DatabaseKit, Moments, aware, kit_of, register
from sagapost.core.databases.postgresql import PostgreSQL
from sagapost.core.databases.sqlite import SQLite

__all__ = [
    "Batch",
    "Conflict",
    "DatabaseKit",
    "Failure",
    "MissingTable",
    "Moments",
    "Other",
    "Outage",
    "PostgreSQL",
    "ReadOnly",
    "Refused",
    "SQLite",
    "Unavailable",
    "aware",
    "code_of",
    "drop_useless_connections",
    "driver_error",
    "kit_of",
    "register",
    "wrapped",
]

register(PostgreSQL())
register(SQLite())
