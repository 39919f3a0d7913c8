"""The choreography as nodes and edges, for every way of drawing it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sagapost.sagas.choreography.manifest import Choreography, Manifest, Step

__all__ = ["Edge", "EdgeKind", "Graph", "Node", "graph_of", "short_name"]


class EdgeKind(Enum):
    """Why an event flows."""

    RESULT = "result"
    FAILURE = "failure"
    DEADLINE = "deadline"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Node:
    """A step, or (with `step` None) the outside world that starts sagas in a service."""

    id: str
    service: str
    label: str
    step: Step | None


@dataclass(frozen=True, slots=True)
class Edge:
    """An event on its way; `target` None: nobody handles it."""

    source: str
    target: str | None
    event: str
    kind: EdgeKind


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order of services and steps; edges in the order of nodes."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    services: tuple[str, ...]


def short_name(event: str) -> str:
    """Return the telling part of an event type: ``orders.order-placed.v1`` -> ``order-placed``."""
    words = event.split(".")
    if len(words) > 1 and words[-1][:1] == "v" and words[-1][1:].isdigit():
        words = words[:-1]
    return words[-1]


def graph_of(choreography: Choreography) -> Graph:
    """Turn manifests into a graph: one node a step, one edge an event from who publishes it to each who handles it."""
    nodes: list[Node] = []
    ids: dict[tuple[str, str | None], str] = {}

    def add(manifest: Manifest, step: Step | None) -> None:
        node = Node(
            id=f"n{len(nodes)}",
            service=manifest.service,
            label="start" if step is None else step.name,
            step=step,
        )
        ids[manifest.service, None if step is None else step.name] = node.id
        nodes.append(node)

    for manifest in choreography.services:
        if manifest.starts:
            add(manifest, None)
        for step in manifest.steps:
            add(manifest, step)

    handled = choreography.handled()
    edges: list[Edge] = []
    for manifest in choreography.services:
        for event in manifest.starts:
            edges += _flow(ids[manifest.service, None], event, EdgeKind.RESULT, handled, ids)
        for step in manifest.steps:
            source = ids[manifest.service, step.name]
            for event in step.emits:
                kind = EdgeKind.UNDO if step.compensates else EdgeKind.RESULT
                edges += _flow(source, event, kind, handled, ids)
            for event in step.fails_with:
                edges += _flow(source, event, EdgeKind.FAILURE, handled, ids)
            for deadline in step.sets:
                edges += _flow(source, deadline.event, EdgeKind.DEADLINE, handled, ids)
            for event in step.compensation.emits if step.compensation is not None else ():
                edges += _flow(source, event, EdgeKind.UNDO, handled, ids)
    return Graph(tuple(nodes), tuple(edges), tuple(m.service for m in choreography.services))


def _flow(
    source: str,
    event: str,
    kind: EdgeKind,
    handled: dict[str, list[tuple[Manifest, Step]]],
    ids: dict[tuple[str, str | None], str],
) -> list[Edge]:
    consumers = handled.get(event, [])
    if not consumers:
        return [Edge(source, None, event, kind)]
    return [Edge(source, ids[manifest.service, step.name], event, kind) for manifest, step in consumers]
