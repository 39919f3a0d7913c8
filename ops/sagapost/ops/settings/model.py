"""All settings of a `sagapost` process, as one frozen object put together from what each part declares."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sagapost.core.adapters import BrokerAdapter
from sagapost.core.settings import leaves_of
from sagapost.inbox.declared.settings import ConsumerSettings
from sagapost.ops.registry import brokers
from sagapost.ops.settings.connections import ConnectionSettings
from sagapost.ops.settings.field import Setting
from sagapost.ops.settings.process import ProcessSettings
from sagapost.outbox.relay.settings import RelaySettings

__all__ = ["PARTS", "Part", "Settings", "all_settings", "part_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """A settings dataclass, and what its variables begin with."""

    name: str
    title: str
    prefix: str
    kind: type

    @property
    def settings(self) -> Sequence[Setting]:
        """What it declares, in its order."""
        return [
            Setting(self.name, leaf.declared.variable or f"{self.prefix}{leaf.name}", leaf)
            for leaf in leaves_of(self.kind)
        ]


PARTS: Final = (
    Part("connections", "Database and broker", "", ConnectionSettings),
    Part("relay", "Relay", "relay_", RelaySettings),
    Part("consumer", "Consumer", "consumer_", ConsumerSettings),
    Part("process", "Process", "", ProcessSettings),
)
"""The parts that every process has; the adapter of its broker adds its own."""


def part_of(adapter: BrokerAdapter) -> Part:
    """Return the part that an adapter adds."""
    return Part("broker", adapter.title, f"{adapter.name}_", adapter.settings)


@dataclass(frozen=True, slots=True)
class Settings:
    """Read from `SAGAPOST_*` environment variables, then from a `.env` file, then the defaults.

    Use `load_settings`, whose errors are written for people and hold no secrets.
    """

    connections: ConnectionSettings
    relay: RelaySettings
    consumer: ConsumerSettings
    process: ProcessSettings
    broker: Any
    """The settings of the broker's adapter, an instance of its `settings`; None where no broker is named."""


def all_settings(adapters: Iterable[BrokerAdapter] | None = None) -> list[Setting]:
    """Return every setting, in the order of the docs.

    :param adapters: whose settings are among them; default: ours.
    """
    parts = [*PARTS, *(part_of(adapter) for adapter in (brokers.ours() if adapters is None else adapters))]
    return [each for part in parts for each in part.settings]
