"""The write side (events in your own transaction) and the relay (publishes them)."""

from sagapost.outbox.tables import OutboxTables, key_hash

__all__ = ["OutboxTables", "key_hash"]
