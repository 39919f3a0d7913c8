"""Which adapter serves which URL.

Adapters are imported where they are chosen, so a process needs the extras of what it uses and no others.
"""

from __future__ import annotations

from sagapost.core.broker import Broker
from sagapost.core.outbox_store import OutboxStore
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import tables_of

__all__ = ["make_broker", "make_store"]


def make_broker(loaded: LoadedSettings) -> Broker:
    """Return the broker adapter for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    """
    from sagapost.adapters.cloudevents import StrangerPolicy

    settings, url = loaded.settings, loaded.broker_url
    strangers = StrangerPolicy(without_id=settings.strangers_without_id)
    if url.scheme == "memory":
        from sagapost.adapters.memory import MemoryBroker

        return MemoryBroker(max_message_bytes=settings.broker_max_message_bytes, stranger_policy=strangers)
    from sagapost.adapters.rabbitmq import RabbitMQBroker

    return RabbitMQBroker(
        url.reveal(),
        exchange=settings.exchange,
        queue_type=settings.queue_type,
        heartbeat=settings.broker_heartbeat,
        connect_timeout=settings.broker_connect_timeout,
        confirm_timeout=settings.broker_confirm_timeout,
        max_message_bytes=settings.broker_max_message_bytes,
        delivery_limit=settings.broker_delivery_limit,
        max_buffered_bytes=settings.broker_max_buffered_bytes,
        stranger_policy=strangers,
    )


def make_store(loaded: LoadedSettings) -> OutboxStore:
    """Return the outbox adapter for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    """
    settings, url = loaded.settings, loaded.database_url
    tables = tables_of(settings).outbox
    if url.scheme.startswith("sqlite"):
        from sagapost.adapters.sqlite import SQLiteOutboxStore

        return SQLiteOutboxStore(url.reveal(), tables=tables)
    from sagapost.adapters.postgresql import PostgreSQLOutboxStore

    direct = settings.database_direct_url
    return PostgreSQLOutboxStore(
        url.reveal(),
        tables=tables,
        direct_url=direct.reveal() if direct is not None else None,
        call_timeout=settings.database_call_timeout.total_seconds(),
        connect_timeout=settings.database_connect_timeout.total_seconds(),
    )
