"""SQLite adapter of the outbox store, on the standard library's sqlite3; the embedded default."""

from sagapost.adapters.sqlite.store import SQLiteOutboxStore

__all__ = ["SQLiteOutboxStore"]
