"""The code that is about to run, as far as something in flight may ask for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sagapost.core.envelope import Event
from sagapost.core.identity import dedup_key
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.inbox import Inbox
from sagapost.inbox.handling.execution import decode
from sagapost.sagas.manifests import sagas_of
from sagapost.sagas.sagas import Sagas

__all__ = ["Code"]

_VERSION = re.compile(r"\.v\d+$")


class Code:
    """The services as they are declared.

    :param inboxes: every inbox that this deployment runs.
    :param elsewhere: event types that other services take, by their manifests.
    """

    def __init__(self, inboxes: Iterable[Inbox], *, elsewhere: Iterable[str] = ()) -> None:
        self.inboxes: Sequence[Inbox] = tuple(inboxes)
        self.elsewhere = frozenset(elsewhere)
        self.sagas: dict[str, Sagas] = {}
        """By service."""
        for inbox in self.inboxes:
            found = sagas_of(inbox)
            if found is not None:
                self.sagas[found.service] = found
        self._families = {_VERSION.sub("", type_): type_ for inbox in self.inboxes for type_ in inbox.takes}

    def takers(self, type_: str, topic: str | None = None) -> list[Inbox]:
        """Return the inboxes that take an event."""
        return [inbox for inbox in self.inboxes if inbox.calls(type_, topic or type_)]

    def other_version(self, type_: str) -> str | None:
        """Return the type of another version of an event that is taken: v2 of what is v1."""
        found = self._families.get(_VERSION.sub("", type_))
        return found if found != type_ else None

    @staticmethod
    def read(inbox: Inbox, event: Event, topic: str | None) -> None:
        """Decode and convert an event as its handlers would.

        :raises DecodingError: if that fails.
        """
        topic = topic or event.type
        decode(Message(event, topic, dedup_key(event), inbox.calls(event.type, topic), None))
