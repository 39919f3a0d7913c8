"""The AsyncAPI document: against the official schema, and true to the manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from sagapost.sagas import manifest_of
from sagapost.sagas.choreography import Choreography, Manifest, to_asyncapi
from tests.sagas.choreographies import ORDER_SCHEMA, healthy, replace_manifest
from tests.sagas.test_declaration import inbox

SCHEMA = Path(__file__).parent / "data" / "asyncapi-3.0.0.json"


@pytest.fixture(scope="module")
def official() -> jsonschema.Draft7Validator:
    """The schema of AsyncAPI 3.0.0, which holds all that it refers to."""
    schema: dict[str, Any] = json.loads(SCHEMA.read_text())
    return jsonschema.Draft7Validator(schema)


def declared_in_code() -> list[Manifest]:
    """One manifest read from decorated handlers, with the schemas of msgspec structs and dataclasses."""
    return [manifest_of(inbox)]


def with_awkward_names() -> list[Manifest]:
    """A service and an event whose names need care as keys."""
    return replace_manifest("payment", service="payment & co/eu", starts=("zahlung:über/fällig v1",))


@pytest.mark.parametrize("manifests", [healthy, declared_in_code, with_awkward_names], ids=lambda made: made.__name__)
def test_the_document_validates_against_the_official_schema(
    official: jsonschema.Draft7Validator, manifests: Any
) -> None:
    """Generators, documentation and registries that take AsyncAPI 3 take this file."""
    document = json.loads(to_asyncapi(Choreography(manifests())))
    problems = [f"{'/'.join(map(str, error.path))}: {error.message}" for error in official.iter_errors(document)]
    assert problems == []


def test_the_official_schema_refuses_what_is_wrong(official: jsonschema.Draft7Validator) -> None:
    """The validation above can fail: an unknown action and an unknown field are both refused."""
    document = json.loads(to_asyncapi(Choreography(healthy())))
    document["operations"]["payment.receive.order-placed"]["action"] = "listen"
    document["chanels"] = {}
    assert len(list(official.iter_errors(document))) == 2


def references(value: Any) -> list[str]:
    """Return every `$ref` in a document."""
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for each in value.values() for found in references(each)]
    return [found for each in value for found in references(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("manifests", [healthy, declared_in_code, with_awkward_names], ids=lambda made: made.__name__)
def test_every_reference_resolves(manifests: Any) -> None:
    """Also those within payload schemas: they are written for a schema that stands alone, and here it does not."""
    document = json.loads(to_asyncapi(Choreography(manifests())))
    for reference in references(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_a_channel_an_event_and_an_operation_a_saying_or_hearing() -> None:
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
