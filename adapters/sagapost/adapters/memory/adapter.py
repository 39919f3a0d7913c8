"""The in-process broker for URLs `memory://`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sagapost.adapters.memory.broker import MemoryBroker
from sagapost.core.adapters import BrokerAdapter
from sagapost.core.foreign import ForeignMessages

__all__ = ["MemorySettings", "adapter"]


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """There is nothing to set."""


def _make(url: str, settings: Any, *, foreign: ForeignMessages) -> MemoryBroker:  # noqa: ARG001 - of the port
    return MemoryBroker(foreign_policy=foreign)


adapter = BrokerAdapter(
    name="memory", title="the memory broker", settings=MemorySettings, make=_make, example="memory://"
)
