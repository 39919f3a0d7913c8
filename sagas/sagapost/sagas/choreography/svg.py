"""The choreography as a stand-alone SVG picture."""

from __future__ import annotations

from xml.sax.saxutils import escape

from sagapost.sagas.choreography.graph import Edge, EdgeKind, Graph, short_name
from sagapost.sagas.choreography.layout import Box, Layout, lay_out

__all__ = ["to_svg"]

_COLOURS = {
    EdgeKind.RESULT: ("#3c4043", ""),
    EdgeKind.FAILURE: ("#b3261e", ' stroke-dasharray="6 4"'),
    EdgeKind.DEADLINE: ("#8a5a00", ' stroke-dasharray="2 4"'),
    EdgeKind.UNDO: ("#5b5f97", ' stroke-dasharray="6 4"'),
}
_MARGIN = 10


def to_svg(graph: Graph) -> str:
    """Return an SVG document."""
    layout = lay_out(graph)
    width, height = layout.width + 2 * _MARGIN + 160, layout.height + 2 * _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{-_MARGIN} {-_MARGIN} {width} {height}" font-family="sans-serif" font-size="12">',
        "<defs>",
    ]
    for kind, (colour, _) in _COLOURS.items():
        lines.append(
            f'<marker id="{kind.value}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        )
    lines.append("</defs>")
    for service, band in layout.bands.items():
        lines += _band(service, band)
    for index, edge in enumerate(graph.edges):
        lines += _edge(edge, layout, index)
    for node in graph.nodes:
        lines += _node(node.label, layout.nodes[node.id], start=node.step is None)
    lines.append("</svg>")
    return "\n".join(lines) + "\n"


def _band(service: str, box: Box) -> list[str]:
    middle = box.y + box.height // 2
    return [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" fill="#f6f7f9" stroke="#d0d4da"/>',
        f'<text x="{box.x + 20}" y="{middle}" text-anchor="middle" font-weight="bold" '
        f'transform="rotate(-90 {box.x + 20} {middle})">{escape(service)}</text>',
    ]


def _node(label: str, box: Box, *, start: bool) -> list[str]:
    radius = box.height // 2 if start else 6
    x, y = box.x + box.width // 2, box.y + box.height // 2 + 4
    return [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="{radius}" fill="#ffffff" '
        'stroke="#3c4043"/>',
        f'<text x="{x}" y="{y}" text-anchor="middle">{escape(label)}</text>',
    ]


def _edge(edge: Edge, layout: Layout, index: int) -> list[str]:
    colour, dashes = _COLOURS[edge.kind]
    x1, y1 = layout.nodes[edge.source].right
    x2, y2 = (x1 + 60, y1) if edge.target is None else layout.nodes[edge.target].left
    # Several edges of one node would share one line: each bends a little elsewhere.
    bend = 40 + (index % 4) * 8
    path = f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}"
    text_x, text_y = (x1 + x2) // 2, (y1 + y2) // 2 - 4 - (index % 3) * 5
    return [
        f'<path d="{path}" fill="none" stroke="{colour}"{dashes} marker-end="url(#{edge.kind.value})"/>',
        f'<text x="{text_x}" y="{text_y}" text-anchor="middle" font-size="10" fill="{colour}">'
        f"{escape(short_name(edge.event))}</text>",
    ]
