"""The consuming side: one effect per event, retries and dead letters a person can see, order where it is asked for."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.inbox.consumer import Consumer
    from sagapost.inbox.context import Context, SyncContext
    from sagapost.inbox.inbox import Inbox
    from sagapost.inbox.outcomes import BusinessFailure, Exhausted, Instead, Reject, Retry, Snooze
    from sagapost.inbox.schedules import At, Schedule
    from sagapost.inbox.settings import ConsumerSettings, RetryPolicy
    from sagapost.inbox.tables import InboxTables
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "consumer": "Consumer",
            "context": "Context SyncContext",
            "inbox": "Inbox",
            "outcomes": "BusinessFailure Exhausted Instead Reject Retry Snooze",
            "schedules": "At Schedule",
            "settings": "ConsumerSettings RetryPolicy",
            "tables": "InboxTables",
        },
    )

__all__ = [
    "Inbox",
    "InboxTables",
    "Context",
    "SyncContext",
    "BusinessFailure",
    "Retry",
    "Reject",
    "Snooze",
    "Instead",
    "Exhausted",
    "At",
    "Schedule",
    "Consumer",
    "ConsumerSettings",
    "RetryPolicy",
]
