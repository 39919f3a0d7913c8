"""Types of columns that are the same in all tables of sagapost.

Alembic writes them into a generated migration by their `repr`, which has to run there as it is: with no other imports
than Alembic writes itself, whatever database it was generated for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Integer
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import TypeEngine, UserDefinedType

__all__ = ["big_integer", "json_document", "transaction_id"]

# Alembic imports the dialect of a type that is defined in the dialect's own package, and prints the rest of its name.
_DIALECT = "sqlalchemy.dialects.postgresql.base"


class _Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, which never wraps."""

    __module__ = _DIALECT
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the DDL name."""
        return "xid8"

    def __repr__(self) -> str:
        """Name it as the dialect knows it below; migrations run where the service's tables are imported."""
        return "base.ischema_names['xid8']()"


# Reflection, and with it Alembic's autogenerate, warns of types it cannot name.
PGDialect.ischema_names["xid8"] = _Xid8  # pyright: ignore[reportArgumentType] - made for it


class _Jsonb(JSONB):
    """JSONB without its type of extracted text in its `repr`, which lacks its import where no PostgreSQL is."""

    __module__ = _DIALECT

    def __repr__(self) -> str:
        return "JSONB(none_as_null=True)" if self.none_as_null else "JSONB()"


def transaction_id() -> TypeEngine[int]:
    """Return the type of a column that holds the id of the transaction that wrote the row."""
    return _Xid8().with_variant(Integer(), "sqlite")


def big_integer() -> TypeEngine[int]:
    """Return a 64-bit integer that can be an identity on every database."""
    return BigInteger().with_variant(Integer(), "sqlite")


def json_document(*, none_as_null: bool = False) -> TypeEngine[Any]:
    """Return the type of a JSON document.

    :param none_as_null: whether None is NULL and not JSON's `null`.
    """
    return JSON(none_as_null=none_as_null).with_variant(_Jsonb(none_as_null=none_as_null), "postgresql")
