"""The choreography as a Mermaid flowchart, which Git forges render in place."""

from __future__ import annotations

from sagapost.sagas.choreography.graph import Edge, EdgeKind, Graph, short_name

__all__ = ["to_mermaid"]


def to_mermaid(graph: Graph) -> str:
    """Return a ``flowchart LR`` with one subgraph per service."""
    lines = ["flowchart LR"]
    for index, service in enumerate(graph.services):
        lines.append(f'    subgraph s{index}["{_text(service)}"]')
        for node in graph.nodes:
            if node.service != service:
                continue
            shape = f'(["{_text(node.label)}"])' if node.step is None else f'["{_text(node.label)}"]'
            lines.append(f"        {node.id}{shape}")
        lines.append("    end")
    ends: dict[str, str] = {}
    for edge in graph.edges:
        target = edge.target
        if target is None:
            target = ends.get(edge.event)
            if target is None:
                target = ends[edge.event] = f"e{len(ends)}"
                lines.append(f'    {target}(("{_text(short_name(edge.event))}"))')
        lines.append(f"    {edge.source} {_arrow(edge)} {target}")
    return "\n".join(lines) + "\n"


def _arrow(edge: Edge) -> str:
    name = _text(short_name(edge.event))
    match edge.kind:
        case EdgeKind.RESULT:
            return f'-- "{name}" -->'
        case EdgeKind.FAILURE:
            return f'-. "{name} (failure)" .->'
        case EdgeKind.DEADLINE:
            return f'-. "{name} (deadline)" .->'
        case EdgeKind.UNDO:
            return f'-. "{name} (undo)" .->'


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
