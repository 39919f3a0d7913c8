"""What the stages of one relay share."""

from __future__ import annotations

from dataclasses import dataclass, field

from sagapost.core.clock import Clock
from sagapost.core.life import Runtime, Signal, StopSignal
from sagapost.core.observer import Observer
from sagapost.outbox.relay.gate import Gate
from sagapost.outbox.relay.ownership import Ownership
from sagapost.outbox.relay.routes import Routes
from sagapost.outbox.relay.settings import RelaySettings
from sagapost.outbox.relay.settlement import Settler

__all__ = ["RelayParts"]


@dataclass(slots=True)
class RelayParts:
    """One relay's state; every stage runs in the same event loop."""

    settings: RelaySettings
    gate: Gate
    routes: Routes
    ownership: Ownership
    settler: Settler
    clock: Clock
    observer: Observer
    background: Runtime
    """Of what goes on while the relay drains, and is cancelled at its end."""
    stop: StopSignal
    """Once set no new rows are fetched; what was sent is confirmed and settled."""
    ready: Signal = field(default_factory=Signal)
    """Set when rows may have become ready to send."""
    nudge: Signal = field(default_factory=Signal)
    """Set to wake a sleeping fetch stage."""
