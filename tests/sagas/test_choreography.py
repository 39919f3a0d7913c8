"""The map and the lint of a choreography, from manifests alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import pytest

from sagapost.core.errors import ConfigurationError
from sagapost.sagas.choreography import (
    RULES,
    Choreography,
    Compensation,
    Deadline,
    Manifest,
    Step,
    graph_of,
    lint,
    read_manifest,
    to_asyncapi,
    to_bpmn,
    to_dot,
    to_mermaid,
    to_svg,
    write_manifest,
)
from sagapost.sagas.choreography.layout import lay_out
from sagapost.sagas.choreography.schemas import conflicts

BPMN = "{http://www.omg.org/spec/BPMN/20100524/MODEL}"
DI = "{http://www.omg.org/spec/BPMN/20100524/DI}"

ORDER_SCHEMA = {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}


def healthy() -> list[Manifest]:
    """Orders -> payment -> warehouse, with a compensation, a deadline and declared ends: nothing to complain about."""
    return [
        Manifest(
            service="orders",
            source="https://orders.example",
            starts=("order-placed",),
            ends=("order-completed", "order-cancelled"),
            schemas={"order-placed": ORDER_SCHEMA},
            steps=(
                Step(name="complete", hears=("goods-dispatched",), emits=("order-completed",), cancels=("fulfil",)),
                Step(
                    name="cancel",
                    hears=("payment-declined", "item-missing", "order-overdue"),
                    emits=("order-cancelled",),
                    compensates=("order-placed",),
                ),
            ),
        ),
        Manifest(
            service="payment",
            source="https://payment.example",
            schemas={"order-placed": ORDER_SCHEMA},
            steps=(
                Step(
                    name="take_payment",
                    hears=("order-placed",),
                    emits=("payment-taken",),
                    fails_with=("payment-declined",),
                    likely_to_fail=True,
                    sets=(Deadline(name="fulfil", event="order-overdue", after_seconds=3600),),
                    compensation=Compensation(name="refund_payment", emits=("payment-refunded",)),
                ),
            ),
            ends=("payment-refunded",),
        ),
        Manifest(
            service="warehouse",
            source="https://warehouse.example",
            steps=(
                Step(
                    name="dispatch",
                    hears=("payment-taken",),
                    emits=("goods-dispatched",),
                    fails_with=("item-missing",),
                    compensation=Compensation(name="recall"),
                ),
            ),
        ),
    ]


def replace_step(service: str, name: str, /, **changes: Any) -> list[Manifest]:
    """Return the healthy choreography with one step changed."""
    return [
        msgspec.structs.replace(
            manifest,
            steps=tuple(
                msgspec.structs.replace(step, **changes) if (manifest.service, step.name) == (service, name) else step
                for step in manifest.steps
            ),
        )
        for manifest in healthy()
    ]


def replace_manifest(service: str, /, **changes: Any) -> list[Manifest]:
    """Return the healthy choreography with one manifest changed."""
    return [
        msgspec.structs.replace(manifest, **changes) if manifest.service == service else manifest
        for manifest in healthy()
    ]


def test_a_healthy_choreography_has_no_findings() -> None:
    """The lint is silent where nothing is wrong; otherwise nobody would let it fail their build."""
    assert lint(Choreography(healthy())) == []


@dataclass(frozen=True)
class Planted:
    """A mistake, and the one rule that must see it."""

    code: str
    subject: str
    manifests: Callable[[], list[Manifest]]


PLANTED = [
    Planted(
        "SP001",
        "loyalty-lost",
        lambda: replace_step("payment", "take_payment", emits=("payment-taken", "loyalty-lost")),
    ),
    Planted(
        "SP002", "dispatch", lambda: replace_step("warehouse", "dispatch", hears=("payment-taken", "stock-counted"))
    ),
    Planted("SP003", "take_payment", lambda: replace_step("payment", "take_payment", compensation=None)),
    Planted("SP004", "order-placed", lambda: _without_deadline()),
    Planted("SP005", "order-placed", lambda: _without_ends()),
    Planted("SP006", "take_payment", lambda: _with_cycle()),
    Planted(
        "SP007",
        "order-placed",
        lambda: replace_manifest(
            "payment",
            schemas={
                "order-placed": {
                    "type": "object",
                    "properties": {"order_id": {"type": "integer"}, "amount": {"type": "number"}},
                    "required": ["order_id", "amount"],
                }
            },
        ),
    ),
    Planted("SP008", "award_points", lambda: _with_points_before_packing()),
]


def _without_deadline() -> list[Manifest]:
    cancel = {"hears": ("payment-declined", "item-missing")}
    return [
        msgspec.structs.replace(
            manifest,
            steps=tuple(
                msgspec.structs.replace(step, sets=(), **(cancel if step.name == "cancel" else {}))
                for step in manifest.steps
            ),
        )
        for manifest in healthy()
    ]


def _without_ends() -> list[Manifest]:
    heard = Step(name="archive", hears=("order-completed", "order-cancelled", "payment-refunded"))
    archive = Manifest(service="archive", source="https://archive.example", steps=(heard,))
    return [*(msgspec.structs.replace(manifest, ends=()) for manifest in healthy()), archive]


def _with_cycle() -> list[Manifest]:
    return replace_step("warehouse", "dispatch", emits=("goods-dispatched", "order-placed"))


def _with_points_before_packing() -> list[Manifest]:
    award = Step(
        name="award_points",
        hears=("payment-taken",),
        emits=("points-awarded",),
        compensation=Compensation(name="revoke_points"),
    )
    loyalty = Manifest(service="loyalty", source="https://loyalty.example", steps=(award,))
    manifests = replace_step("warehouse", "dispatch", hears=("points-packed",), likely_to_fail=True)
    pack = Step(name="pack", hears=("points-awarded",), emits=("points-packed",), changes_nothing=True)
    return [*manifests, loyalty, Manifest(service="packing", source="https://packing.example", steps=(pack,))]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.code)
def test_each_planted_mistake_is_found_where_it_is(planted: Planted) -> None:
    """Every rule sees its mistake and names the step or event; the explanation says what to do."""
    findings = [finding for finding in lint(Choreography(planted.manifests())) if finding.code == planted.code]
    assert planted.subject in {finding.subject for finding in findings}
    assert all(finding.message.endswith(".") for finding in findings)


def test_every_rule_has_a_planted_mistake() -> None:
    """A new rule cannot be added without a choreography that it finds something in."""
    assert {planted.code for planted in PLANTED} == {rule.code for rule in RULES}


def test_a_rule_can_be_ignored_by_its_code() -> None:
    """A team that disagrees with a rule switches that rule off and keeps the others."""
    manifests = replace_step("payment", "take_payment", compensation=None)
    assert "SP003" not in {f.code for f in lint(Choreography(manifests), ignore=frozenset({"SP003"}))}


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
        ("orders.start", "order-placed", "payment.take_payment"),
        ("orders.complete", "order-completed", "-"),
        ("orders.cancel", "order-cancelled", "-"),
        ("payment.take_payment", "payment-taken", "warehouse.dispatch"),
        ("payment.take_payment", "payment-declined", "orders.cancel"),
        ("payment.take_payment", "order-overdue", "orders.cancel"),
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
    layout = lay_out(graph_of(Choreography(_with_cycle())))
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


def test_the_bpmn_is_consistent_and_every_element_has_its_shape() -> None:
    """A modeller refuses dangling references and draws only what has coordinates."""
    root = ET.fromstring(to_bpmn(Choreography(healthy())))
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    for flow in [*root.iter(f"{BPMN}sequenceFlow"), *root.iter(f"{BPMN}messageFlow")]:
        assert {flow.get("sourceRef"), flow.get("targetRef")} <= ids
    for definition in root.iter(f"{BPMN}messageEventDefinition"):
        assert definition.get("messageRef") in ids
    drawn = {shape.get("bpmnElement") for shape in [*root.iter(f"{DI}BPMNShape"), *root.iter(f"{DI}BPMNEdge")]}
    elements = {e.get("id") for process in root.iter(f"{BPMN}process") for e in process}
    assert elements <= drawn
    assert {flow.get("id") for flow in root.iter(f"{BPMN}messageFlow")} <= drawn


def test_bpmn_message_flows_cross_pools_and_never_stay_inside_one() -> None:
    """BPMN allows message flows between participants only."""
    root = ET.fromstring(to_bpmn(Choreography(healthy())))
    pool = {e.get("id"): p.get("id") for p in root.iter(f"{BPMN}process") for e in p}
    flows = list(root.iter(f"{BPMN}messageFlow"))
    assert len(flows) == 6
    assert all(pool[flow.get("sourceRef")] != pool[flow.get("targetRef")] for flow in flows)


def test_the_asyncapi_document_has_a_channel_an_event_and_an_operation_a_saying_or_hearing() -> None:
    """Channels, messages and operations refer to each other, and payloads come from the service that says them."""
    document = msgspec.json.decode(to_asyncapi(Choreography(healthy())))
    assert document["asyncapi"] == "3.0.0"
    assert set(document["channels"]) == set(document["components"]["messages"])
    for operation in document["operations"].values():
        channel = operation["channel"]["$ref"].removeprefix("#/channels/")
        assert channel in document["channels"]
        for message in operation["messages"]:
            assert message["$ref"] == f"#/channels/{channel}/messages/{channel}"
    assert document["components"]["messages"]["order-placed"]["payload"] == ORDER_SCHEMA
    assert document["operations"]["payment.receive.order-placed"]["action"] == "receive"


@pytest.mark.parametrize(
    ("said", "heard", "problems"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}},
            {"type": "object", "properties": {}},
            0,
        ),
        ({"type": "integer"}, {"type": "number"}, 0),
        ({"type": "number"}, {"type": "integer"}, 1),
        ({"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["b"]}, 1),
        ({"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["a"]}, 1),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "string"}, 1),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"type": "string"}}}},
            {"type": "array", "items": {"type": "integer"}},
            1,
        ),
    ],
)
def test_schemas_conflict_only_where_the_hearer_would_break(
    said: dict[str, Any], heard: dict[str, Any], problems: int
) -> None:
    """A hearer that knows less is fine; one that needs more, or something else, is not."""
    assert len(conflicts(said, heard)) == problems
