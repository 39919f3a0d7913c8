"""The relay: publishes what writers committed to the outbox."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.outbox.relay.relay import Relay, RelayStatistics
    from sagapost.outbox.relay.settings import DeadLetterPolicy, RelaySettings, Routing, UnroutablePolicy
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "relay": "Relay RelayStatistics",
            "settings": "DeadLetterPolicy RelaySettings Routing UnroutablePolicy",
        },
    )

__all__ = ["Relay", "RelaySettings", "RelayStatistics", "Routing", "DeadLetterPolicy", "UnroutablePolicy"]
