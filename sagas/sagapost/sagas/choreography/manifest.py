"""What a service declares about its part of a choreography, and the whole that the parts make.

A manifest is plain data: exported by each service, kept as JSON beside its code, merged by whoever wants the map. No
service needs to be importable, or running, where the map is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from sagapost.core.errors import ConfigurationError

__all__ = ["Choreography", "Compensation", "DeclaredDeadline", "Manifest", "Step", "read_manifest", "write_manifest"]

FORMAT = "sagapost-manifest"


class DeclaredDeadline(msgspec.Struct, frozen=True, kw_only=True):
    """A scheduled event that a step sets, and that later steps cancel."""

    name: str
    event: str
    after_seconds: float


class Compensation(msgspec.Struct, frozen=True, kw_only=True):
    """What undoes a step's effect, in the service that owns it."""

    name: str
    emits: tuple[str, ...] = ()


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One handler: what it handles, what it publishes, and how it is undone."""

    name: str
    handles: tuple[str, ...]
    emits: tuple[str, ...] = ()
    fails_with: tuple[str, ...] = ()
    """Business failures: events that say the step could not be done, after which the saga is rolled back."""
    compensation: Compensation | None = None
    compensates: tuple[str, ...] = ()
    """Event types whose effect this step undoes: it is part of a rollback."""
    rolls_back: bool = False
    """The step starts the rollback of all that its service did in the saga."""
    sets: tuple[DeclaredDeadline, ...] = ()
    cancels: tuple[str, ...] = ()
    """Names of deadlines that are no longer waited for once this step ran."""
    changes_nothing: bool = False
    """The step has no effect to undo (a projection, a notification nobody regrets)."""
    likely_to_fail: bool = False
    """Declared by the author: business failures are common here (a card declined, stock missing)."""
    transaction: str = ""
    """Name of the transaction that it shares with other steps of its service; empty: that of all without a name."""
    summary: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One service's part."""

    service: str
    source: str
    steps: tuple[Step, ...] = ()
    starts: tuple[str, ...] = ()
    """Events published outside any handler (a web request, a job): they start a saga."""
    ends: tuple[str, ...] = ()
    """Events after which the saga is over."""
    schemas: Mapping[str, Mapping[str, Any]] = {}
    """Event type -> JSON Schema of its data, as this service knows it."""
    format: str = FORMAT


class Choreography:
    """The manifests of all services, as one graph of events and steps."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self.services: tuple[Manifest, ...] = tuple(sorted(manifests, key=lambda m: m.service))
        names = [manifest.service for manifest in self.services]
        for name in names:
            if names.count(name) > 1:
                raise ConfigurationError(
                    f"Two manifests are of the service {name!r}. Pass one manifest per service, the newest."
                )

    def steps(self) -> Iterable[tuple[Manifest, Step]]:
        """Every step of every service."""
        for manifest in self.services:
            for step in manifest.steps:
                yield manifest, step

    def emitted(self) -> dict[str, list[tuple[Manifest, Step | None]]]:
        """Event type -> who publishes it; None stands for outside any handler."""
        emitted: dict[str, list[tuple[Manifest, Step | None]]] = {}
        for manifest in self.services:
            for event in manifest.starts:
                emitted.setdefault(event, []).append((manifest, None))
            for step in manifest.steps:
                for event in may_publish(step):
                    emitted.setdefault(event, []).append((manifest, step))
        return emitted

    def handled(self) -> dict[str, list[tuple[Manifest, Step]]]:
        """Event type -> who handles it."""
        handled: dict[str, list[tuple[Manifest, Step]]] = {}
        for manifest, step in self.steps():
            for event in step.handles:
                handled.setdefault(event, []).append((manifest, step))
        return handled

    def events(self) -> list[str]:
        """Every event type anybody publishes or handles."""
        return sorted({*self.emitted(), *self.handled()})

    def starts(self) -> frozenset[str]:
        """Events that start a saga."""
        return frozenset(event for manifest in self.services for event in manifest.starts)

    def ends(self) -> frozenset[str]:
        """Events after which the saga is over."""
        return frozenset(event for manifest in self.services for event in manifest.ends)

    def failures(self) -> frozenset[str]:
        """Events that start a rollback: business failures and deadlines."""
        failed = {event for _, step in self.steps() for event in step.fails_with}
        return frozenset(failed | {deadline.event for _, step in self.steps() for deadline in step.sets})

    def next_steps(self, event: str) -> list[tuple[Manifest, Step]]:
        """What is expected to happen after an event."""
        return self.handled().get(event, [])


def may_publish(step: Step) -> tuple[str, ...]:
    """Return everything a step may publish, each once: results, failures, deadlines, and that of its rollback."""
    compensation = step.compensation.emits if step.compensation is not None else ()
    emitted = (*step.emits, *step.fails_with, *(deadline.event for deadline in step.sets), *compensation)
    return tuple(dict.fromkeys(emitted))


def write_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, indented and stable, fit for version control."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file.

    :raises ConfigurationError: if the file cannot be read or is no manifest; names the field that is wrong.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise ConfigurationError(f"The manifest {path} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{path} is not a manifest: {error}. Write one with `sagapost saga manifest module:service`."
        ) from error
    if manifest.format != FORMAT:
        raise ConfigurationError(f"{path} has the format {manifest.format!r}, expected {FORMAT!r}.")
    return manifest
