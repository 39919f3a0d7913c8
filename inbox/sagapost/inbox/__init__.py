"""The consuming side: one effect per event, retries and dead letters a person can see, order where it is asked for."""

from sagapost.inbox.consumer import Consumer
from sagapost.inbox.context import Context, SyncContext
from sagapost.inbox.inbox import Inbox
from sagapost.inbox.outcomes import BusinessFailure, Exhausted, Instead, Reject, Retry, Snooze
from sagapost.inbox.schedules import At, Schedule
from sagapost.inbox.settings import ConsumerSettings, RetryPolicy
from sagapost.inbox.tables import InboxTables

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
