"""The choreography in Graphviz' DOT language."""

from __future__ import annotations

from sagapost.sagas.choreography.graph import EdgeKind, Graph, short_name

__all__ = ["to_dot"]

_STYLES = {
    EdgeKind.RESULT: "",
    EdgeKind.FAILURE: ', style=dashed, color="#b3261e", fontcolor="#b3261e"',
    EdgeKind.DEADLINE: ', style=dotted, color="#8a5a00", fontcolor="#8a5a00"',
    EdgeKind.UNDO: ', style=dashed, color="#5b5f97", fontcolor="#5b5f97"',
}


def to_dot(graph: Graph) -> str:
    """Return a ``digraph`` with one cluster per service."""
    lines = [
        "digraph choreography {",
        "  rankdir=LR;",
        '  node [shape=box, style=rounded, fontname="sans-serif"];',
        '  edge [fontname="sans-serif", fontsize=10];',
    ]
    for index, service in enumerate(graph.services):
        lines.append(f"  subgraph cluster_{index} {{")
        lines.append(f"    label={_quote(service)};")
        for node in graph.nodes:
            if node.service == service:
                shape = ", shape=circle" if node.step is None else ""
                lines.append(f"    {node.id} [label={_quote(node.label)}{shape}];")
        lines.append("  }")
    ends: dict[str, str] = {}
    for edge in graph.edges:
        target = edge.target
        if target is None:
            if edge.event not in ends:
                ends[edge.event] = f"e{len(ends)}"
                lines.append(f"  {ends[edge.event]} [label={_quote(short_name(edge.event))}, shape=doublecircle];")
            target = ends[edge.event]
        lines.append(f"  {edge.source} -> {target} [label={_quote(short_name(edge.event))}{_STYLES[edge.kind]}];")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
