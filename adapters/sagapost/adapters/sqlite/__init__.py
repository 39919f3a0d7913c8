"""SQLite adapter of the outbox store, on the standard library's sqlite3; the embedded default."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.adapters.sqlite.store import SQLiteOutboxStore
else:
    __getattr__, __dir__ = lazily(__name__, {"store": "SQLiteOutboxStore"})

__all__ = ["SQLiteOutboxStore"]
