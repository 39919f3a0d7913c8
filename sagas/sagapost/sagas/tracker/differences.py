"""What services said, against what their manifests say they say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sagapost.sagas.choreography.manifest import may_publish
from sagapost.sagas.tracker.lifecycle import LIFECYCLE
from sagapost.sagas.tracker.route import Route

__all__ = ["Difference", "differences"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the declared choreography and what was observed."""

    kind: Literal["unknown-service", "undeclared", "never-published"]
    service: str
    event: str
    saga: str | None
    """Where it was first observed."""

    def __str__(self) -> str:
        match self.kind:
            case "unknown-service":
                return f"{self.service} publishes {self.event}, and there is no manifest of it"
            case "undeclared":
                return f"{self.service} publishes {self.event}, which its manifest does not declare"
            case "never-published":
                return f"{self.service} declares {self.event} and has never published it"


def differences(observed: Iterable[tuple[str, str, str]], route: Route) -> list[Difference]:
    """Compare (source, type, example saga) with the choreography; nothing without a choreography."""
    if route.choreography is None:
        return []
    found: list[Difference] = []
    said: set[tuple[str, str]] = set()
    for source, type_, saga in observed:
        said.add((source, type_))
        if type_.startswith(LIFECYCLE):
            continue
        if source not in route.services:
            found.append(Difference("unknown-service", source, type_, saga))
        elif not route.may_say(source, type_):
            found.append(Difference("undeclared", route.services[source], type_, saga))
    for manifest in route.choreography.services:
        declared = dict.fromkeys(
            [*manifest.starts, *(type_ for step in manifest.steps for type_ in may_publish(step))]
        )
        found += [
            Difference("never-published", manifest.service, type_, None)
            for type_ in declared
            if (manifest.source, type_) not in said
        ]
    return found
