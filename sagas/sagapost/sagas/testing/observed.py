"""What was said in a rehearsal, compared with what the services declare."""

from __future__ import annotations

from sagapost.core.envelope import Event
from sagapost.inbox.declared.handlers import topic_regex
from sagapost.sagas.choreography.manifest import Choreography, Manifest, may_publish

__all__ = ["Observed"]

_OWN = "sagapost."
"""Events of the library itself, which no service declares."""


class Observed:
    """Every event with the service that said it; None: the test."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._publishers: list[str | None] = []

    def note(self, event: Event, service: str | None) -> None:
        """Remember an event."""
        self.events.append(event)
        self._publishers.append(service)

    def undeclared(self, choreography: Choreography) -> list[str]:
        """Return a sentence for each saying that no declaration covers."""
        manifests = {manifest.service: manifest for manifest in choreography.services}
        types = {event.id: event.type for event in self.events}
        found: dict[str, None] = {}
        for event, service in zip(self.events, self._publishers, strict=True):
            if service is None or event.type.startswith(_OWN):
                continue
            cause = types.get(event.causationid or "")
            if event.type not in _declared(manifests[service], cause):
                when = f"when it handles {cause}" if cause is not None else "by itself"
                found[f"{service} publishes {event.type} {when}, and does not declare it"] = None
        return list(found)

    def unpublished(self, choreography: Choreography) -> list[str]:
        """Return the declared event types that were not published."""
        published = {event.type for event in self.events}
        return sorted(type_ for type_ in choreography.emitted() if type_ not in published)


def _declared(manifest: Manifest, cause: str | None) -> set[str]:
    """Return what a service may publish when it handles `cause`; None: when nothing made it."""
    undone = {event for step in manifest.steps if step.compensation is not None for event in step.compensation.emits}
    if cause is None:
        return {*manifest.starts, *undone}
    return undone.union(*(may_publish(step) for step in manifest.steps if _handles(step.handles, cause)))


def _handles(topics: tuple[str, ...], type_: str) -> bool:
    return any(topic_regex(topic).fullmatch(type_) for topic in topics)
