"""The BPMN document against the OMG's schema, as shipped with an independent BPMN engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from lxml import etree

from sagapost.sagas.choreography import Choreography, to_bpmn
from tests.sagas.test_choreography import healthy


def test_the_bpmn_validates_against_the_schema() -> None:
    """Any modeller that follows BPMN 2.0 can read the file."""
    spec = importlib.util.find_spec("SpiffWorkflow")
    if spec is None or spec.origin is None:
        pytest.fail("the dev dependency SpiffWorkflow, which ships the BPMN 2.0 schema, is not installed")
    path = Path(spec.origin).parent / "bpmn" / "parser" / "schema" / "BPMN20.xsd"
    schema = etree.XMLSchema(etree.parse(str(path)))
    document = etree.fromstring(to_bpmn(Choreography(healthy())).encode())
    assert schema.validate(document), schema.error_log
