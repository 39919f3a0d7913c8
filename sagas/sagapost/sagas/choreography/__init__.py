"""The choreography as declared in code: manifests, the map, and what is wrong with it."""

from sagapost.sagas.choreography.acceptances import Acceptance, read_acceptances
from sagapost.sagas.choreography.asyncapi import to_asyncapi
from sagapost.sagas.choreography.bpmn import to_bpmn
from sagapost.sagas.choreography.dot import to_dot
from sagapost.sagas.choreography.findings import Finding, Rule, Severity
from sagapost.sagas.choreography.graph import graph_of
from sagapost.sagas.choreography.lint import lint
from sagapost.sagas.choreography.manifest import (
    Choreography,
    Compensation,
    Deadline,
    Manifest,
    Step,
    read_manifest,
    write_manifest,
)
from sagapost.sagas.choreography.mermaid import to_mermaid
from sagapost.sagas.choreography.rules import RULES, STALE
from sagapost.sagas.choreography.svg import to_svg

__all__ = [
    "Manifest",
    "Step",
    "Compensation",
    "Deadline",
    "Choreography",
    "read_manifest",
    "write_manifest",
    "graph_of",
    "to_mermaid",
    "to_dot",
    "to_svg",
    "to_bpmn",
    "to_asyncapi",
    "lint",
    "Finding",
    "Severity",
    "Rule",
    "RULES",
    "STALE",
    "Acceptance",
    "read_acceptances",
]
