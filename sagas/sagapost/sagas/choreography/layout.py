"""Coordinates for a choreography: layers from left to right, one band per service.

The classic layered approach (Sugiyama, Tagawa, Toda 1981) in its simplest form: break cycles by a depth-first search,
put every node behind its predecessors (longest path), and stack the nodes of one service in one layer above each
other. Bands fix the vertical order, so no crossing reduction is attempted.
"""

from __future__ import annotations

from dataclasses import dataclass

from sagapost.sagas.choreography.graph import Edge, Graph

__all__ = ["Box", "Layout", "lay_out"]

WIDTH, HEIGHT = 150, 60
GAP_X, GAP_Y = 90, 30
BAND_PADDING, HEADER = 25, 40


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels from the top left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def left(self) -> tuple[int, int]:
        """Middle of the left side."""
        return self.x, self.y + self.height // 2

    @property
    def right(self) -> tuple[int, int]:
        """Middle of the right side."""
        return self.x + self.width, self.y + self.height // 2


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything goes."""

    nodes: dict[str, Box]
    bands: dict[str, Box]
    width: int
    height: int


def lay_out(graph: Graph) -> Layout:
    """Place the nodes of a graph."""
    layers = _layers(graph)
    columns = max(layers.values(), default=0) + 1
    nodes: dict[str, Box] = {}
    bands: dict[str, Box] = {}
    width = HEADER + 2 * BAND_PADDING + columns * (WIDTH + GAP_X) - GAP_X
    top = 0
    for service in graph.services:
        stacked: dict[int, int] = {}
        for node in graph.nodes:
            if node.service != service:
                continue
            layer = layers[node.id]
            row = stacked.get(layer, 0)
            stacked[layer] = row + 1
            nodes[node.id] = Box(
                HEADER + BAND_PADDING + layer * (WIDTH + GAP_X),
                top + BAND_PADDING + row * (HEIGHT + GAP_Y),
                WIDTH,
                HEIGHT,
            )
        rows = max(stacked.values(), default=1)
        height = 2 * BAND_PADDING + rows * (HEIGHT + GAP_Y) - GAP_Y
        bands[service] = Box(0, top, width, height)
        top += height + GAP_Y
    return Layout(nodes, bands, width, max(top - GAP_Y, 0))


def _layers(graph: Graph) -> dict[str, int]:
    """Longest path from the sources, over the edges that are left when cycles are broken."""
    following: dict[str, list[str]] = {node.id: [] for node in graph.nodes}
    for edge in _forward_edges(graph):
        if edge.target is not None:
            following[edge.source].append(edge.target)
    incoming = dict.fromkeys(following, 0)
    for targets in following.values():
        for target in targets:
            incoming[target] += 1
    layers = dict.fromkeys(following, 0)
    ready = [node for node, count in incoming.items() if not count]
    while ready:
        node = ready.pop(0)
        for target in following[node]:
            layers[target] = max(layers[target], layers[node] + 1)
            incoming[target] -= 1
            if not incoming[target]:
                ready.append(target)
    return layers


def _forward_edges(graph: Graph) -> list[Edge]:
    """Every edge except those that close a cycle, found by an iterative depth-first search."""
    outgoing: dict[str, list[Edge]] = {node.id: [] for node in graph.nodes}
    for edge in graph.edges:
        if edge.target is not None and edge.target != edge.source:
            outgoing[edge.source].append(edge)
    done: set[str] = set()
    forward: list[Edge] = []
    for root in outgoing:
        if root in done:
            continue
        path: set[str] = {root}
        stack = [(root, iter(outgoing[root]))]
        while stack:
            node, edges = stack[-1]
            following = next(edges, None)
            if following is None:
                stack.pop()
                path.discard(node)
                done.add(node)
                continue
            target = following.target
            if target is None or target in path:
                continue
            forward.append(following)
            if target not in done:
                path.add(target)
                stack.append((target, iter(outgoing[target])))
    return forward
