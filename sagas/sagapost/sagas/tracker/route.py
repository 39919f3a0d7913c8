"""The choreography map as the fold asks it: who said this, what comes after it, what does it undo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from sagapost.sagas.choreography.manifest import Choreography, DeclaredDeadline, Manifest, Step, may_publish

__all__ = ["Declared", "Route", "Stop", "read_declared"]


class Declared(msgspec.Struct, frozen=True):
    """What a tracker's rows are derived with, as its database keeps it."""

    manifests: tuple[Manifest, ...] = ()
    ends: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """One step of one service; compared by identity, since a choreography has each once."""

    service: str
    source: str
    name: str
    handles: frozenset[str]
    emits: frozenset[str]
    fails_with: frozenset[str]
    undone_by: frozenset[str]
    """What its compensation says."""
    has_compensation: bool
    sets: tuple[DeclaredDeadline, ...]
    cancels: frozenset[str]

    @property
    def visible(self) -> bool:
        """Whether anybody can see that it was done; one that only says when it fails is done in silence."""
        return bool(self.emits)


@dataclass(slots=True)
class Route:
    """Lookups, built once per choreography; without one, everything that depends on it is empty."""

    choreography: Choreography | None = None
    services: dict[str, str] = field(default_factory=dict[str, str])
    """Source -> service."""
    starts: frozenset[str] = frozenset()
    ends: frozenset[str] = frozenset()
    said: dict[tuple[str, str], tuple[Stop, ...]] = field(default_factory=dict[tuple[str, str], tuple[Stop, ...]])
    """(source, type) -> the steps that may have said it."""
    after: dict[str, tuple[Stop, ...]] = field(default_factory=dict[str, tuple[Stop, ...]])
    """Type -> the steps that handle it."""
    rolls_back: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Type -> the services that undo their part when they handle it."""
    stops: dict[str, tuple[Stop, ...]] = field(default_factory=dict[str, tuple[Stop, ...]])
    """Service -> its steps."""

    @classmethod
    def of(cls, choreography: Choreography | None, *, ends: Iterable[str] = ()) -> Route:
        """Prepare a choreography.

        :param ends: further events after which a saga is over; needed where there is no choreography.
        """
        route = cls(choreography=choreography, ends=frozenset(ends))
        if choreography is None:
            return route
        route.ends |= choreography.ends()
        route.starts = choreography.starts()
        rolls: dict[str, list[str]] = {}
        for manifest in choreography.services:
            route.services[manifest.source] = manifest.service
            stops = [_stop(manifest, step) for step in manifest.steps if not step.rolls_back]
            route.stops[manifest.service] = tuple(stops)
            for stop in stops:
                for type_ in stop.handles:
                    route.after[type_] = (*route.after.get(type_, ()), stop)
                for type_ in stop.emits | stop.fails_with | stop.undone_by:
                    place = (stop.source, type_)
                    route.said[place] = (*route.said.get(place, ()), stop)
            for step in manifest.steps:
                if step.rolls_back:
                    for type_ in step.handles:
                        rolls.setdefault(type_, []).append(manifest.service)
        route.rolls_back = {type_: tuple(names) for type_, names in rolls.items()}
        return route

    def service(self, source: str) -> str:
        """Return the name of the service behind a source; for one without a manifest, the last part of the URI."""
        return self.services.get(source) or source.rstrip("/").rpartition("/")[2].partition(".")[0] or source

    def may_say(self, source: str, type_: str) -> bool:
        """Return whether a service's manifest has it that the service says this."""
        if self.choreography is None:
            return True
        return any(
            type_ in manifest.starts or any(type_ in may_publish(step) for step in manifest.steps)
            for manifest in self.choreography.services
            if manifest.source == source
        )


def read_declared(declared: bytes) -> Route:
    """Return what a tracker's database keeps, prepared."""
    known = msgspec.json.decode(declared, type=Declared)
    return Route.of(Choreography(known.manifests) if known.manifests else None, ends=known.ends)


def _stop(manifest: Manifest, step: Step) -> Stop:
    deadlines = {deadline.event for deadline in step.sets}
    return Stop(
        service=manifest.service,
        source=manifest.source,
        name=step.name,
        handles=frozenset(step.handles),
        emits=frozenset(step.emits) - deadlines,
        fails_with=frozenset(step.fails_with),
        undone_by=frozenset(step.compensation.emits) if step.compensation is not None else frozenset(),
        has_compensation=step.compensation is not None,
        sets=step.sets,
        cancels=frozenset(step.cancels),
    )
