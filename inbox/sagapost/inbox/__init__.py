"""The consuming side: one effect per event, retries and dead letters a person can see, order where it is asked for."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.inbox.declared.context import Context, SyncContext
    from sagapost.inbox.declared.inbox import Inbox
    from sagapost.inbox.declared.outcomes import BusinessFailure, Exhausted, Instead, Reject, Retry, Snooze
    from sagapost.inbox.declared.schedules import At, Schedule
    from sagapost.inbox.declared.settings import ConsumerSettings, RetryPolicy
    from sagapost.inbox.declared.tables import InboxTables
    from sagapost.inbox.running.consumer import Consumer
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "running.consumer": "Consumer",
            "declared.context": "Context SyncContext",
            "declared.inbox": "Inbox",
            "declared.outcomes": "BusinessFailure Exhausted Instead Reject Retry Snooze",
            "declared.schedules": "At Schedule",
            "declared.settings": "ConsumerSettings RetryPolicy",
            "declared.tables": "InboxTables",
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
