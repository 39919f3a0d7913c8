"""The choreography as a BPMN 2.0 collaboration, with diagram coordinates so that modellers open it as a picture.

One participant (pool) per service. Each step is a message start event, a task, and one message end event for each
event it may publish; message flows connect the end events of one pool with the start events of others. A deadline is a
timer catch event behind the task. What undoes a step is a compensation task, tied to it by a boundary event; a step
that starts the rollback ends with a compensation end event. Schema: OMG BPMN 2.0.2, formal/2013-12-09.
"""

from __future__ import annotations

from xml.etree import ElementTree as ET

from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.choreography.manifest import Choreography, Compensation, Manifest, Step

__all__ = ["to_bpmn"]

_BPMN = "http://www.omg.org/spec/BPMN/20100524/MODEL"
_DI = "http://www.omg.org/spec/BPMN/20100524/DI"
_DC = "http://www.omg.org/spec/DD/20100524/DC"
_DDI = "http://www.omg.org/spec/DD/20100524/DI"

_EVENT, _TASK_W, _TASK_H = 36, 120, 60
_ROW, _LEFT, _TASK_X, _GATEWAY_X, _TIMER_X, _END_X, _POOL_W = 80, 80, 180, 350, 450, 560, 720


def to_bpmn(choreography: Choreography) -> str:
    """Return the BPMN XML document."""
    return _Writer(choreography).document()


class _Writer:
    def __init__(self, choreography: Choreography) -> None:
        self._choreography = choreography
        for prefix, uri in (("bpmn", _BPMN), ("bpmndi", _DI), ("dc", _DC), ("di", _DDI)):
            ET.register_namespace(prefix, uri)
        self._root = ET.Element(
            f"{{{_BPMN}}}definitions", {"id": "definitions", "targetNamespace": "urn:sagapost:choreography"}
        )
        self._messages = {event: f"message_{n}" for n, event in enumerate(choreography.events())}
        self._shapes: list[tuple[str, int, int, int, int, bool]] = []
        self._edges: list[tuple[str, list[tuple[int, int]]]] = []
        # By event: element, x of its middle, y of its top, and height.
        self._throws: dict[str, list[tuple[str, int, int, int]]] = {}
        self._catches: dict[str, list[tuple[str, int, int, int]]] = {}
        # Artifacts follow all flow elements of a process.
        self._associations: list[tuple[str, str, str]] = []
        self._count = 0
        self._y = 0

    def document(self) -> str:
        for event, message in self._messages.items():
            ET.SubElement(self._root, f"{{{_BPMN}}}message", {"id": message, "name": event})
        collaboration = ET.SubElement(self._root, f"{{{_BPMN}}}collaboration", {"id": "collaboration"})
        for index, manifest in enumerate(self._choreography.services):
            ET.SubElement(
                collaboration,
                f"{{{_BPMN}}}participant",
                {"id": f"participant_{index}", "name": manifest.service, "processRef": f"process_{index}"},
            )
            self._process(index, manifest)
        self._message_flows(collaboration)
        self._diagram()
        ET.indent(self._root)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(self._root, encoding="unicode") + "\n"

    def _process(self, index: int, manifest: Manifest) -> None:
        process = ET.SubElement(self._root, f"{{{_BPMN}}}process", {"id": f"process_{index}", "isExecutable": "false"})
        top = self._y
        y = top + 20
        for event in manifest.starts:
            y = self._start(process, event, y)
        for step in manifest.steps:
            y = self._step(process, step, y)
        for id_, source, target in self._associations:
            ET.SubElement(
                process,
                f"{{{_BPMN}}}association",
                {"id": id_, "associationDirection": "One", "sourceRef": source, "targetRef": target},
            )
        self._associations.clear()
        self._y = y + 20
        self._shapes.append((f"participant_{index}", 0, top, _POOL_W, self._y - top, True))
        self._y += 40

    def _start(self, process: ET.Element, event: str, y: int) -> int:
        """A saga starts here, from outside: none start event -> message end event."""
        begin, end = self._id(), self._id()
        ET.SubElement(process, f"{{{_BPMN}}}startEvent", {"id": begin, "name": "start"})
        self._end_event(process, end, event)
        self._sequence(process, begin, end, (_LEFT + _EVENT, y + 18), (_END_X, y + 18))
        self._shapes.append((begin, _LEFT, y, _EVENT, _EVENT, False))
        self._shapes.append((end, _END_X, y, _EVENT, _EVENT, False))
        self._throws.setdefault(event, []).append((end, _END_X + _EVENT // 2, y, _EVENT))
        return y + _ROW

    def _step(self, process: ET.Element, step: Step, y: int) -> int:
        """Message start events -> task -> one message end event per saying (by a gateway if several)."""
        says = tuple(dict.fromkeys((*step.emits, *step.fails_with, *(deadline.event for deadline in step.sets))))
        rows = max(len(says), len(step.handles), 1)
        middle = y + (rows - 1) * _ROW // 2 + 18
        task = self._id()
        ET.SubElement(process, f"{{{_BPMN}}}task", {"id": task, "name": step.name})
        self._shapes.append((task, _TASK_X, middle - _TASK_H // 2, _TASK_W, _TASK_H, False))
        for row, event in enumerate(step.handles):
            begin = self._id()
            caught = ET.SubElement(process, f"{{{_BPMN}}}startEvent", {"id": begin, "name": short_name(event)})
            ET.SubElement(
                caught, f"{{{_BPMN}}}messageEventDefinition", {"id": self._id(), "messageRef": self._messages[event]}
            )
            at = y + row * _ROW
            self._shapes.append((begin, _LEFT, at, _EVENT, _EVENT, False))
            self._catches.setdefault(event, []).append((begin, _LEFT + _EVENT // 2, at, _EVENT))
            self._sequence(process, begin, task, (_LEFT + _EVENT, at + 18), (_TASK_X, middle))
        source, source_x = task, _TASK_X + _TASK_W
        if len(says) > 1:
            source, source_x = self._gateway(process, task, middle), _GATEWAY_X + 50
        deadlines = {deadline.event: deadline for deadline in step.sets}
        for row, event in enumerate(says):
            at = y + row * _ROW
            before, before_x, before_y = source, source_x, middle
            deadline = deadlines.get(event)
            if deadline is not None:
                before = self._timer(process, deadline.name, deadline.after_seconds, at)
                self._sequence(process, source, before, (source_x, middle), (_TIMER_X, at + 18))
                before_x, before_y = _TIMER_X + _EVENT, at + 18
            end = self._id()
            self._end_event(process, end, event)
            self._shapes.append((end, _END_X, at, _EVENT, _EVENT, False))
            self._throws.setdefault(event, []).append((end, _END_X + _EVENT // 2, at, _EVENT))
            self._sequence(process, before, end, (before_x, before_y), (_END_X, at + 18))
        if not says:
            end = self._id()
            ended = ET.SubElement(process, f"{{{_BPMN}}}endEvent", {"id": end})
            if step.rolls_back:
                ET.SubElement(ended, f"{{{_BPMN}}}compensateEventDefinition", {"id": self._id()})
            self._shapes.append((end, _END_X, middle - 18, _EVENT, _EVENT, False))
            self._sequence(process, task, end, (_TASK_X + _TASK_W, middle), (_END_X, middle))
        y += rows * _ROW
        return y if step.compensation is None else self._compensation(process, task, middle, step.compensation, y)

    def _compensation(self, process: ET.Element, task: str, middle: int, compensation: Compensation, y: int) -> int:
        """Boundary event on the task -> compensation task, which may send messages but is in no sequence."""
        boundary, undoing, association = self._id(), self._id(), self._id()
        caught = ET.SubElement(process, f"{{{_BPMN}}}boundaryEvent", {"id": boundary, "attachedToRef": task})
        ET.SubElement(caught, f"{{{_BPMN}}}compensateEventDefinition", {"id": self._id()})
        ET.SubElement(
            process, f"{{{_BPMN}}}task", {"id": undoing, "name": compensation.name, "isForCompensation": "true"}
        )
        self._associations.append((association, boundary, undoing))
        x, top = _TASK_X + _TASK_W - _EVENT - 8, middle + _TASK_H // 2 - _EVENT // 2
        self._shapes.append((boundary, x, top, _EVENT, _EVENT, False))
        self._shapes.append((undoing, _GATEWAY_X, y, _TASK_W, _TASK_H, False))
        below = (x + _EVENT // 2, y + _TASK_H // 2)
        self._edges.append((association, [(x + _EVENT // 2, top + _EVENT), below, (_GATEWAY_X, y + _TASK_H // 2)]))
        for event in compensation.emits:
            self._throws.setdefault(event, []).append((undoing, _GATEWAY_X + _TASK_W // 2, y, _TASK_H))
        return y + _ROW

    def _gateway(self, process: ET.Element, task: str, middle: int) -> str:
        """Results and failures are alternatives, results may come together: an inclusive choice."""
        gateway = self._id()
        ET.SubElement(process, f"{{{_BPMN}}}inclusiveGateway", {"id": gateway})
        self._shapes.append((gateway, _GATEWAY_X, middle - 25, 50, 50, False))
        self._sequence(process, task, gateway, (_TASK_X + _TASK_W, middle), (_GATEWAY_X, middle))
        return gateway

    def _timer(self, process: ET.Element, name: str, seconds: float, y: int) -> str:
        timer = self._id()
        caught = ET.SubElement(process, f"{{{_BPMN}}}intermediateCatchEvent", {"id": timer, "name": name})
        definition = ET.SubElement(caught, f"{{{_BPMN}}}timerEventDefinition", {"id": self._id()})
        duration = ET.SubElement(definition, f"{{{_BPMN}}}timeDuration", {"id": self._id()})
        duration.text = f"PT{seconds:g}S"
        self._shapes.append((timer, _TIMER_X, y, _EVENT, _EVENT, False))
        return timer

    def _end_event(self, process: ET.Element, id_: str, event: str) -> None:
        end = ET.SubElement(process, f"{{{_BPMN}}}endEvent", {"id": id_, "name": short_name(event)})
        ET.SubElement(
            end, f"{{{_BPMN}}}messageEventDefinition", {"id": self._id(), "messageRef": self._messages[event]}
        )

    def _sequence(
        self, process: ET.Element, source: str, target: str, start: tuple[int, int], stop: tuple[int, int]
    ) -> None:
        flow = self._id()
        ET.SubElement(process, f"{{{_BPMN}}}sequenceFlow", {"id": flow, "sourceRef": source, "targetRef": target})
        self._edges.append((flow, [start, stop]))

    def _message_flows(self, collaboration: ET.Element) -> None:
        """Only between pools: BPMN forbids message flows inside one; there the event's name says it."""
        pools = dict(self._pool_of_elements())
        for event, throws in self._throws.items():
            for thrown, x1, y1, height in throws:
                for caught, x2, y2, caught_height in self._catches.get(event, []):
                    if pools[thrown] == pools[caught]:
                        continue
                    flow = self._id()
                    ET.SubElement(
                        collaboration,
                        f"{{{_BPMN}}}messageFlow",
                        {
                            "id": flow,
                            "name": event,
                            "sourceRef": thrown,
                            "targetRef": caught,
                            "messageRef": self._messages[event],
                        },
                    )
                    self._edges.append(
                        (flow, [(x1, y1 + (height if y2 > y1 else 0)), (x2, y2 + (0 if y2 > y1 else caught_height))])
                    )

    def _pool_of_elements(self) -> list[tuple[str, str]]:
        return [
            (element.get("id", ""), process.get("id", ""))
            for process in self._root.iter(f"{{{_BPMN}}}process")
            for element in process
        ]

    def _diagram(self) -> None:
        diagram = ET.SubElement(self._root, f"{{{_DI}}}BPMNDiagram", {"id": "diagram"})
        plane = ET.SubElement(diagram, f"{{{_DI}}}BPMNPlane", {"id": "plane", "bpmnElement": "collaboration"})
        for element, x, y, width, height, pool in self._shapes:
            attributes = {"id": f"{element}_shape", "bpmnElement": element}
            if pool:
                attributes["isHorizontal"] = "true"
            shape = ET.SubElement(plane, f"{{{_DI}}}BPMNShape", attributes)
            ET.SubElement(
                shape,
                f"{{{_DC}}}Bounds",
                {"x": str(x), "y": str(y), "width": str(width), "height": str(height)},
            )
        for element, points in self._edges:
            edge = ET.SubElement(plane, f"{{{_DI}}}BPMNEdge", {"id": f"{element}_edge", "bpmnElement": element})
            for x, y in points:
                ET.SubElement(edge, f"{{{_DDI}}}waypoint", {"x": str(x), "y": str(y)})

    def _id(self) -> str:
        self._count += 1
        return f"id_{self._count}"
