"""The in-process broker for URLs `memory://`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sagapost.adapters.cloudevents import ForeignPolicy
from sagapost.adapters.memory.broker import MemoryBroker
from sagapost.core.adapters import BrokerAdapter, MissingIdPolicy

__all__ = ["MemorySettings", "adapter"]


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """There is nothing to set."""


def _make(url: str, settings: Any, *, without_id: MissingIdPolicy) -> MemoryBroker:  # noqa: ARG001 - of the port
    return MemoryBroker(foreign_policy=ForeignPolicy(without_id=without_id))


adapter = BrokerAdapter(
    name="memory", title="the memory broker", settings=MemorySettings, make=_make, example="memory://"
)
