"""The BPMN document: against the OMG's schema, opened by an independent engine, and drawn so that it can be read."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from lxml import etree

from sagapost.sagas.choreography import Choreography, Manifest, Step, to_bpmn
from tests.sagas.choreographies import healthy

BPMN = "{http://www.omg.org/spec/BPMN/20100524/MODEL}"
DI = "{http://www.omg.org/spec/BPMN/20100524/DI}"
DC = "{http://www.omg.org/spec/DD/20100524/DC}"
WAYPOINT = "{http://www.omg.org/spec/DD/20100524/DI}waypoint"


def root_of(manifests: list[Manifest] | None = None) -> ET.Element:
    """Return the document of a choreography, parsed."""
    return ET.fromstring(to_bpmn(Choreography(manifests if manifests is not None else healthy())))


def test_the_bpmn_validates_against_the_schema() -> None:
    """Any modeller that follows BPMN 2.0 can read the file; it holds a timer, a compensation and a rollback."""
    spec = importlib.util.find_spec("SpiffWorkflow")
    if spec is None or spec.origin is None:
        pytest.fail("the dev dependency SpiffWorkflow, which ships the BPMN 2.0 schema, is not installed")
    path = Path(spec.origin).parent / "bpmn" / "parser" / "schema" / "BPMN20.xsd"
    schema = etree.XMLSchema(etree.parse(str(path)))
    text = to_bpmn(Choreography(healthy()))
    assert "timerEventDefinition" in text
    assert text.count("compensateEventDefinition") == 4
    assert schema.validate(etree.fromstring(text.encode())), schema.error_log


def test_what_undoes_a_step_is_a_compensation_task() -> None:
    """A boundary event on the step, tied to a task for compensation; the rollback throws the compensation."""
    root = root_of()
    by_id = {element.get("id"): element for element in root.iter() if element.get("id")}
    undone: dict[str | None, str | None] = {}
    for association in root.iter(f"{BPMN}association"):
        boundary, undoing = by_id[association.get("sourceRef")], by_id[association.get("targetRef")]
        assert undoing.get("isForCompensation") == "true"
        assert boundary.find(f"{BPMN}compensateEventDefinition") is not None
        undone[by_id[boundary.get("attachedToRef")].get("name")] = undoing.get("name")
    assert undone == {"take_payment": "refund_payment", "dispatch": "recall"}
    thrown = [end for end in root.iter(f"{BPMN}endEvent") if end.find(f"{BPMN}compensateEventDefinition") is not None]
    assert len(thrown) == 2, "payment and warehouse each start their rollback"


def test_a_compensation_task_is_in_no_sequence() -> None:
    """BPMN runs it when the compensation is thrown, never because something came before it."""
    root = root_of()
    undoing = {task.get("id") for task in root.iter(f"{BPMN}task") if task.get("isForCompensation")}
    assert undoing
    for flow in root.iter(f"{BPMN}sequenceFlow"):
        assert not {flow.get("sourceRef"), flow.get("targetRef")} & undoing


def test_what_a_compensation_says_comes_from_the_compensation() -> None:
    """A refund is published by the undoing, not by the step that took the money."""
    handled = Step(name="tell", handles=("payment-refunded",), changes_nothing=True)
    root = root_of([*healthy(), Manifest(service="mail", source="https://mail.example", steps=(handled,))])
    names = {element.get("id"): element.get("name") for element in root.iter() if element.get("id")}
    refunds = [flow for flow in root.iter(f"{BPMN}messageFlow") if flow.get("name") == "payment-refunded"]
    assert [names[flow.get("sourceRef")] for flow in refunds] == ["refund_payment"]


def test_every_reference_leads_somewhere_and_every_element_is_drawn() -> None:
    """A modeller refuses dangling references and draws only what has coordinates."""
    root = root_of()
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    for flow in [
        *root.iter(f"{BPMN}sequenceFlow"),
        *root.iter(f"{BPMN}messageFlow"),
        *root.iter(f"{BPMN}association"),
    ]:
        assert {flow.get("sourceRef"), flow.get("targetRef")} <= ids
    for definition in root.iter(f"{BPMN}messageEventDefinition"):
        assert definition.get("messageRef") in ids
    drawn = {shape.get("bpmnElement") for shape in [*root.iter(f"{DI}BPMNShape"), *root.iter(f"{DI}BPMNEdge")]}
    elements = {element.get("id") for process in root.iter(f"{BPMN}process") for element in process}
    assert elements <= drawn
    assert {flow.get("id") for flow in root.iter(f"{BPMN}messageFlow")} <= drawn


def test_message_flows_cross_pools_and_never_stay_inside_one() -> None:
    """BPMN allows message flows between participants only."""
    root = root_of()
    pool = {e.get("id"): p.get("id") for p in root.iter(f"{BPMN}process") for e in p}
    flows = list(root.iter(f"{BPMN}messageFlow"))
    assert sorted(flow.get("name", "") for flow in flows) == [
        "goods-dispatched",
        "item-missing",
        "order-cancelled",
        "order-cancelled",
        "order-placed",
        "payment-declined",
        "payment-taken",
    ]
    assert all(pool[flow.get("sourceRef")] != pool[flow.get("targetRef")] for flow in flows)


@dataclass(frozen=True)
class Box:
    """Where a shape is drawn."""

    x: float
    y: float
    width: float
    height: float

    def touches(self, x: float, y: float) -> bool:
        """Whether a point lies on its border."""
        across = self.x <= x <= self.x + self.width and y in {self.y, self.y + self.height}
        along = self.y <= y <= self.y + self.height and x in {self.x, self.x + self.width}
        return across or along

    def overlaps(self, other: Box) -> bool:
        """Whether it covers a part of another."""
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def holds(self, other: Box) -> bool:
        """Whether another lies within it."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )


def boxes_of(root: ET.Element) -> dict[str, Box]:
    """Return the shape of every element."""
    found: dict[str, Box] = {}
    for shape in root.iter(f"{DI}BPMNShape"):
        bounds = shape.find(f"{DC}Bounds")
        assert bounds is not None
        x, y, width, height = (float(bounds.get(name, "nan")) for name in ("x", "y", "width", "height"))
        found[shape.get("bpmnElement", "")] = Box(x, y, width, height)
    return found


def test_nothing_covers_anything_and_everything_is_in_its_pool() -> None:
    """The picture can be read as it opens, without anybody moving boxes about."""
    root = root_of()
    boxes = boxes_of(root)
    processes = {process.get("id"): process for process in root.iter(f"{BPMN}process")}
    pools = [boxes[participant.get("id", "")] for participant in root.iter(f"{BPMN}participant")]
    for participant in root.iter(f"{BPMN}participant"):
        pool, process = boxes[participant.get("id", "")], processes[participant.get("processRef")]
        # A boundary event sits on the border of its task.
        inside = [
            boxes[element.get("id", "")]
            for element in process
            if element.get("id") in boxes and element.tag != f"{BPMN}boundaryEvent"
        ]
        assert all(pool.holds(box) for box in inside)
        assert not [(a, b) for n, a in enumerate(inside) for b in inside[n + 1 :] if a.overlaps(b)]
    assert not [(a, b) for n, a in enumerate(pools) for b in pools[n + 1 :] if a.overlaps(b)]


def test_every_line_begins_and_ends_at_what_it_connects() -> None:
    """A line that ends in the air connects nothing for whoever reads the picture."""
    root = root_of()
    boxes = boxes_of(root)
    flows = {
        flow.get("id"): (flow.get("sourceRef", ""), flow.get("targetRef", ""))
        for flow in root.iter()
        if flow.get("sourceRef")
    }
    edges = list(root.iter(f"{DI}BPMNEdge"))
    assert len(edges) == len(flows)
    for edge in edges:
        source, target = flows[edge.get("bpmnElement")]
        points = [(float(point.get("x", "nan")), float(point.get("y", "nan"))) for point in edge.iter(WAYPOINT)]
        assert boxes[source].touches(*points[0])
        assert boxes[target].touches(*points[-1])
