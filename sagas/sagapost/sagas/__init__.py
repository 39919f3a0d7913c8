"""Choreographed sagas: started, undone, timed, and declared."""

from sagapost.sagas.compensations import NotYet
from sagapost.sagas.compensator import Compensator, CompensatorSettings
from sagapost.sagas.context import CompensationContext, StepContext
from sagapost.sagas.declaration import DeadlineDeclaration, manifest_of
from sagapost.sagas.http import join_request, request_headers
from sagapost.sagas.sagas import Sagas
from sagapost.sagas.start import join, start
from sagapost.sagas.tables import SagaTables
from sagapost.sagas.task_desk import Task, TaskDesk
from sagapost.sagas.tasks import Close, Emit, Escalate, RetryStep, RollBack

__all__ = [
    "start",
    "join",
    "join_request",
    "request_headers",
    "Sagas",
    "SagaTables",
    "StepContext",
    "CompensationContext",
    "DeadlineDeclaration",
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
