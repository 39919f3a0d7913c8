"""What the outbox tables fill in and refuse by themselves, in the SQL of each database.

Other writers than this library insert by plain SQL, so the rules every reader relies on stand in the tables, where the
database has words for them. What it has no words for, the relay finds when it reads the row, and holds that row alone.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sagapost.core.envelope import ATTRIBUTES, Form

__all__ = [
    "ATTEMPTS",
    "CURRENT_TRANSACTION",
    "DELIVER_AT",
    "EXTENSIONS",
    "NAMES",
    "NEW_ID",
    "SLOT",
    "STORAGE",
    "TIME",
]


class _PerDatabase(FunctionElement[Any]):
    """An expression that each database writes in its own words."""

    inherit_cache = False

    def __init__(self, *, postgresql: str, sqlite: str) -> None:
        self.postgresql = postgresql
        self.sqlite = sqlite
        super().__init__()


@compiles(_PerDatabase)
def _in_sqlite(element: _PerDatabase, _compiler: SQLCompiler, **_: Any) -> str:
    return element.sqlite


@compiles(_PerDatabase, "postgresql")
def _in_postgresql(element: _PerDatabase, _compiler: SQLCompiler, **_: Any) -> str:
    return element.postgresql


# --- what is filled in ---

CURRENT_TRANSACTION = _PerDatabase(postgresql="pg_current_xact_id()", sqlite="0")
"""The inserting transaction's id, where the database has one."""

NEW_ID = _PerDatabase(postgresql="gen_random_uuid()", sqlite="(lower(hex(randomblob(16))))")

SLOT = _PerDatabase(
    # Written as PostgreSQL prints it, so that Alembic finds no difference. The hash is the one of hash partitioning:
    # the same for every session, and reckoned anew when a dump is restored.
    postgresql=(
        "((COALESCE(hashtextextended((partitionkey)::text, (0)::bigint), uuid_hash_extended(event_id, (0)::bigint))"
        " & (32767)::bigint))::smallint"
    ),
    # SQLite has no hash. Its one relay owns every partition, so this only has to be the same for all rows of a key.
    sqlite=(
        "(coalesce(unicode(substr(coalesce(partitionkey, event_id), -1)), 0) * 961"
        " + coalesce(unicode(substr(coalesce(partitionkey, event_id), -2, 1)), 0) * 31"
        " + length(coalesce(partitionkey, event_id))) & 32767"
    ),
)

# --- what is refused ---

_NAMES = ("topic", *(each.name for each in ATTRIBUTES if each.form is Form.NAME and each.name != "id"))
"""AMQP 0-9-1 carries them as short strings of at most 255 bytes; CloudEvents allows none to be empty."""

_TEXTS = tuple(each.name for each in ATTRIBUTES if each.form in {Form.KEY, Form.TEXT})

NAMES = _PerDatabase(
    postgresql=" AND ".join(
        (
            *(f"octet_length({name}) BETWEEN 1 AND 255" for name in _NAMES),
            *(f"octet_length({name}) > 0" for name in _TEXTS),
        )
    ),
    sqlite=" AND ".join(
        (
            *(f"length(CAST({name} AS BLOB)) BETWEEN 1 AND 255" for name in _NAMES),
            *(f"length({name}) > 0" for name in _TEXTS),
            "length(partitionkey) <= 255",
        )
    ),
)

_FIRST, _LAST = "0001-01-01 00:00:00+00", "9999-12-31 00:00:00+00"
"""The times that every client can read: infinity, years before Christ and years of five digits are none."""

TIME = _PerDatabase(
    postgresql=f"\"time\" >= '{_FIRST}'::timestamptz AND \"time\" < '{_LAST}'::timestamptz",
    sqlite="julianday(time) IS NOT NULL AND time < '9999-12-31' AND time GLOB '[0-9][0-9][0-9][0-9]-*'",
)

DELIVER_AT = _PerDatabase(
    postgresql=f"deliver_at >= '{_FIRST}'::timestamptz AND deliver_at < '{_LAST}'::timestamptz",
    sqlite=(
        "julianday(deliver_at) IS NOT NULL AND deliver_at < '9999-12-31' "
        "AND deliver_at GLOB '[0-9][0-9][0-9][0-9]-*' AND typeof(deliver_at) = 'text'"
    ),
)

ATTEMPTS = _PerDatabase(
    postgresql="attempts >= 0 AND isfinite(next_attempt_at)",
    sqlite="attempts >= 0 AND typeof(attempts) = 'integer'",
)

EXTENSIONS = _PerDatabase(
    # An object of strings, with names as CloudEvents has them.
    postgresql=(
        "jsonb_typeof(extensions) = 'object'"
        " AND NOT jsonb_path_exists(extensions, 'strict $.* ? (@.type() <> \"string\")')"
        " AND NOT jsonb_path_exists(extensions, '$.keyvalue().key ? (!(@ like_regex \"^[a-z0-9]+$\"))')"
    ),
    sqlite="CASE WHEN extensions IS NULL THEN 1 WHEN json_valid(extensions) THEN json_type(extensions) = 'object' END",
)

STORAGE = _PerDatabase(
    # The types of the columns say it.
    postgresql="true",
    # SQLite stores what it is given, whatever the column's type.
    sqlite=" AND ".join(
        (
            "typeof(data) = 'blob'",
            "typeof(time) = 'text'",
            "length(event_id) = 32 AND event_id NOT GLOB '*[^0-9a-f]*'",
            *(f"typeof({name}) IN ('text', 'null')" for name in (*_NAMES, *_TEXTS, "extensions")),
        )
    ),
)
