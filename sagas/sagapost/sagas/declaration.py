"""What steps of sagas declare about themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sagapost.core.naming import event_type_of
from sagapost.sagas.compensations import CompensationFunction
from sagapost.sagas.deadlines import Deadline

__all__ = ["StepDeclaration", "type_names"]


@dataclass(frozen=True, slots=True)
class StepDeclaration:
    """What a step publishes about itself beyond what its handler says."""

    compensation: CompensationFunction | None
    fails_with: tuple[type | str, ...]
    undoes: tuple[type | str, ...]
    deadlines: tuple[Deadline[Any], ...]
    cancels: tuple[Deadline[Any], ...]
    changes_nothing: bool
    likely_to_fail: bool


def type_names(events: Iterable[type | str]) -> tuple[str, ...]:
    """Return the event types of classes and names."""
    return tuple(item if isinstance(item, str) else event_type_of(item) for item in events)
