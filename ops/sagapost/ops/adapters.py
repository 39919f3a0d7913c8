"""Which adapter serves which URL.

Adapters are imported where they are chosen, so a process needs the extras of what it uses and no others.
"""

from __future__ import annotations

from sagapost.core.broker import Broker
from sagapost.core.foreign import ForeignMessages
from sagapost.core.outbox_store import OutboxStore
from sagapost.ops.registry import brokers, database_adapter
from sagapost.ops.settings import LoadedSettings
from sagapost.ops.tables import tables_of

__all__ = ["make_broker", "make_store"]


def make_broker(loaded: LoadedSettings) -> Broker:
    """Return the broker for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    :raises ConfigurationError: if its adapter cannot be used.
    """
    url, without_id = loaded.broker_url, loaded.settings.connections.foreign_without_id
    foreign = ForeignMessages(id_from="content" if without_id == "digest" else "message")
    return brokers.find(url.scheme).make(url.reveal(), loaded.settings.broker, foreign=foreign)


def make_store(loaded: LoadedSettings) -> OutboxStore:
    """Return the outbox adapter for the settings' URL; it opens nothing yet.

    :raises MissingExtraError: if its driver is not installed.
    """
    settings, url = loaded.settings.connections, loaded.database_url
    direct = settings.database_direct_url
    return database_adapter(url.scheme).make_store(
        url.reveal(),
        tables=tables_of(loaded.settings).outbox,
        direct_url=direct.reveal() if direct is not None else None,
        connect_timeout=settings.database_connect_timeout,
        call_timeout=settings.database_call_timeout,
    )
