"""Choreographed sagas: started, undone, timed, and declared."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.sagas.beginning import join, start
    from sagapost.sagas.compensations import NotYet
    from sagapost.sagas.compensator import Compensator, CompensatorSettings
    from sagapost.sagas.context import CompensationContext, StepContext
    from sagapost.sagas.deadlines import Deadline
    from sagapost.sagas.http import join_request, request_headers
    from sagapost.sagas.manifests import manifest_of
    from sagapost.sagas.sagas import Sagas
    from sagapost.sagas.tables import SagaTables
    from sagapost.sagas.task_desk import Task, TaskDesk
    from sagapost.sagas.tasks import Close, Emit, Escalate, RetryStep, RollBack
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "compensations": "NotYet",
            "compensator": "Compensator CompensatorSettings",
            "context": "CompensationContext StepContext",
            "deadlines": "Deadline",
            "manifests": "manifest_of",
            "http": "join_request request_headers",
            "sagas": "Sagas",
            "beginning": "join start",
            "tables": "SagaTables",
            "task_desk": "Task TaskDesk",
            "tasks": "Close Emit Escalate RetryStep RollBack",
        },
    )

__all__ = [
    "start",
    "join",
    "join_request",
    "request_headers",
    "Sagas",
    "SagaTables",
    "StepContext",
    "CompensationContext",
    "Deadline",
    "manifest_of",
    "Compensator",
    "CompensatorSettings",
    "NotYet",
    "Escalate",
    "Emit",
    "RetryStep",
    "RollBack",
    "Close",
    "Task",
    "TaskDesk",
]
