"""The map of a choreography, from manifests alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from sagapost.core.errors import ConfigurationError
from sagapost.sagas.choreography import (
    Choreography,
    graph_of,
    read_manifest,
    to_dot,
    to_mermaid,
    to_svg,
    write_manifest,
)
from sagapost.sagas.choreography.layout import lay_out
from tests.sagas.choreographies import healthy, replace_step


def test_manifests_survive_a_round_trip_through_a_file(tmp_path: Path) -> None:
    """What a service exports is what the map reads, field by field."""
    for manifest in healthy():
        path = tmp_path / f"{manifest.service}.json"
        path.write_bytes(write_manifest(manifest))
        assert read_manifest(path) == manifest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not a manifest"),
        (b'{"service": 1, "source": ""}', "service"),
        (b'{"service":"a","source":"b","format":"x"}', "format"),
    ],
)
def test_a_broken_manifest_names_the_file_and_the_field(tmp_path: Path, content: bytes, said: str) -> None:
    """Bad input gets one clear error."""
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said) as caught:
        read_manifest(path)
    assert "broken.json" in str(caught.value)


def test_two_manifests_of_one_service_are_refused() -> None:
    """An old export beside a new one would draw steps twice."""
    with pytest.raises(ConfigurationError, match="orders"):
        Choreography([*healthy(), healthy()[0]])


def test_the_graph_has_an_edge_for_every_hearer_and_for_every_unheard_event() -> None:
    """The pictures are drawn from this graph, so it must hold every flow of the manifests."""
    graph = graph_of(Choreography(healthy()))
    labels = {node.id: f"{node.service}.{node.label}" for node in graph.nodes}
    flows = {(labels[e.source], e.event, labels.get(e.target or "", "-")) for e in graph.edges}
    assert flows == {
        ("orders.start", "order-placed", "orders.watch"),
        ("orders.start", "order-placed", "payment.take_payment"),
        ("orders.watch", "order-overdue", "orders.cancel"),
        ("orders.complete", "order-completed", "-"),
        ("orders.cancel", "order-cancelled", "payment.roll_back"),
        ("orders.cancel", "order-cancelled", "warehouse.roll_back"),
        ("payment.take_payment", "payment-taken", "warehouse.dispatch"),
        ("payment.take_payment", "payment-declined", "orders.cancel"),
        ("payment.take_payment", "payment-refunded", "-"),
        ("warehouse.dispatch", "goods-dispatched", "orders.complete"),
        ("warehouse.dispatch", "item-missing", "orders.cancel"),
    }


def test_mermaid_and_dot_name_every_node_and_quote_what_would_break_them() -> None:
    """A label with quotes or brackets must not break the picture of everything else."""
    manifests = replace_step("warehouse", "dispatch", name='dispatch "now" <fast>')
    graph = graph_of(Choreography(manifests))
    mermaid, dot = to_mermaid(graph), to_dot(graph)
    assert mermaid.startswith("flowchart LR\n")
    assert "dispatch &quot;now&quot; &lt;fast&gt;" in mermaid
    assert 'label="dispatch \\"now\\" <fast>"' in dot
    assert all(f"{node.id}" in mermaid and f"{node.id} [" in dot for node in graph.nodes)


def test_no_two_boxes_of_the_layout_overlap() -> None:
    """The SVG and BPMN pictures are readable only if nothing covers anything."""
    layout = lay_out(
        graph_of(Choreography(replace_step("warehouse", "dispatch", emits=("goods-dispatched", "order-placed"))))
    )
    boxes = list(layout.nodes.values())
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
            assert apart, (a, b)


def test_the_svg_is_well_formed_and_shows_every_step() -> None:
    """The picture opens in a browser and holds each step's name."""
    root = ET.fromstring(to_svg(graph_of(Choreography(healthy()))))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"take_payment", "dispatch", "complete", "cancel", "orders", "payment", "warehouse"} <= texts
