"""The relay: publishes what writers committed to the outbox."""

from sagapost.outbox.relay.relay import Relay, RelayStatistics
from sagapost.outbox.relay.settings import DeadLetterPolicy, RelaySettings, Routing, UnroutablePolicy

__all__ = ["Relay", "RelaySettings", "RelayStatistics", "Routing", "DeadLetterPolicy", "UnroutablePolicy"]
