"""The write side (events in your own transaction) and the relay (publishes them)."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.outbox.aggregates import Recorder
    from sagapost.outbox.handles import AsyncHandle, SyncHandle
    from sagapost.outbox.options import PublishOptions
    from sagapost.outbox.outbox import DEFAULT_MAX_BYTES, Outbox
    from sagapost.outbox.tables import OutboxTables
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "aggregates": "Recorder",
            "handles": "AsyncHandle SyncHandle",
            "options": "PublishOptions",
            "outbox": "DEFAULT_MAX_BYTES Outbox",
            "tables": "OutboxTables",
        },
    )

__all__ = [
    "Outbox",
    "OutboxTables",
    "Recorder",
    "PublishOptions",
    "SyncHandle",
    "AsyncHandle",
    "DEFAULT_MAX_BYTES",
]
