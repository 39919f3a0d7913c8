"""The choreography as declared in code: manifests, the map, and what is wrong with it."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.sagas.choreography.acceptances import Acceptance, read_acceptances
    from sagapost.sagas.choreography.asyncapi import to_asyncapi
    from sagapost.sagas.choreography.bpmn import to_bpmn
    from sagapost.sagas.choreography.dot import to_dot
    from sagapost.sagas.choreography.findings import Finding, LintRule, Severity
    from sagapost.sagas.choreography.graph import graph_of
    from sagapost.sagas.choreography.linting import lint
    from sagapost.sagas.choreography.manifest import (
        Choreography,
        Compensation,
        DeclaredDeadline,
        Manifest,
        Step,
        read_manifest,
        write_manifest,
    )
    from sagapost.sagas.choreography.mermaid import to_mermaid
    from sagapost.sagas.choreography.rules import RULES, STALE
    from sagapost.sagas.choreography.svg import to_svg
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "acceptances": "Acceptance read_acceptances",
            "asyncapi": "to_asyncapi",
            "bpmn": "to_bpmn",
            "dot": "to_dot",
            "findings": "Finding LintRule Severity",
            "graph": "graph_of",
            "linting": "lint",
            "manifest": "Choreography Compensation DeclaredDeadline Manifest Step read_manifest write_manifest",
            "mermaid": "to_mermaid",
            "rules": "RULES STALE",
            "svg": "to_svg",
        },
    )

__all__ = [
    "Manifest",
    "Step",
    "Compensation",
    "DeclaredDeadline",
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
    "LintRule",
    "RULES",
    "STALE",
    "Acceptance",
    "read_acceptances",
]
