"""What the parts of a running consumer share."""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.core.life import Runtime
from sagapost.core.observer import Observer
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.declared.settings import ConsumerSettings
from sagapost.inbox.kept.database import Database
from sagapost.inbox.running.availability import Availability

__all__ = ["Shared"]


@dataclass(frozen=True, slots=True)
class Shared:
    """One consumer's inbox, settings, database and life."""

    inbox: Inbox
    settings: ConsumerSettings
    database: Database
    availability: Availability
    observer: Observer
    """Told about each message; the same as the runtime's, without its guard, since it has one of its own."""
    runtime: Runtime

    @property
    def name(self) -> str:
        """The consumer's name, which is that of its inbox."""
        return self.inbox.name
