"""Transactional outbox, idempotent inbox and choreographed sagas: what the author of a service writes with.

Every name is imported when it is first used: `import sagapost` alone loads nothing. The parts are packages of their
own (`sagapost.outbox`, `sagapost.inbox`, `sagapost.sagas`, ...), found wherever they are installed (docs/adr/0013).
"""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING

__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from sagapost.core.envelope import Event
    from sagapost.core.errors import ConfigurationError, SagapostError
    from sagapost.core.foreign import ForeignMessages
    from sagapost.core.naming import event
    from sagapost.inbox.declared.context import Context, SyncContext
    from sagapost.inbox.declared.outcomes import BusinessFailure, Exhausted, Instead, Reject, Retry, Snooze
    from sagapost.inbox.declared.schedules import At, Schedule
    from sagapost.inbox.declared.settings import RetryPolicy
    from sagapost.outbox.aggregates import Recorder
    from sagapost.sagas.compensations import NotYet
    from sagapost.sagas.context import CompensationContext, StepContext
    from sagapost.sagas.deadlines import Deadline
    from sagapost.sagas.http import join_request, request_headers
    from sagapost.sagas.tasks import Close, Emit, Escalate, RetryStep, RollBack
    from sagapost.service.service import Service
else:
    from sagapost.core.lazy import lazily

    __getattr__, __dir__ = lazily(
        __name__,
        {
            "core.envelope": "Event",
            "core.errors": "ConfigurationError SagapostError",
            "core.foreign": "ForeignMessages",
            "core.naming": "event",
            "inbox.declared.context": "Context SyncContext",
            "inbox.declared.outcomes": "BusinessFailure Exhausted Instead Reject Retry Snooze",
            "inbox.declared.schedules": "At Schedule",
            "inbox.declared.settings": "RetryPolicy",
            "outbox.aggregates": "Recorder",
            "sagas.compensations": "NotYet",
            "sagas.context": "CompensationContext StepContext",
            "sagas.deadlines": "Deadline",
            "sagas.http": "join_request request_headers",
            "sagas.tasks": "Close Emit Escalate RetryStep RollBack",
            "service.service": "Service",
        },
    )

__all__ = [
    "Service",
    "event",
    "Event",
    "Context",
    "StepContext",
    "SyncContext",
    "CompensationContext",
    "Deadline",
    "BusinessFailure",
    "Retry",
    "Reject",
    "Snooze",
    "Instead",
    "Escalate",
    "Exhausted",
    "RetryPolicy",
    "Schedule",
    "At",
    "NotYet",
    "Emit",
    "RetryStep",
    "RollBack",
    "Close",
    "Recorder",
    "ForeignMessages",
    "join_request",
    "request_headers",
    "SagapostError",
    "ConfigurationError",
]
