"""The choreography as an AsyncAPI 3 document: channels are topics, operations are steps.

Only what the code declares is stated; nothing is guessed. Specification: AsyncAPI 3.0.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.choreography.manifest import Choreography, Manifest, Step, may_publish

__all__ = ["to_asyncapi"]

_CORRELATION = "$message.header#/ce-correlationid"


def to_asyncapi(choreography: Choreography, *, title: str = "Choreography", exchange: str = "sagapost") -> str:
    """Return the document as JSON.

    :param exchange: the RabbitMQ topic exchange that the events go through.
    """
    events = choreography.events()
    names = {event: _key(event) for event in events}
    schemas: dict[str, Any] = {}
    messages = {names[event]: _message(choreography, event, names[event], schemas) for event in events}
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": "1.0.0"},
        "defaultContentType": "application/json",
        "channels": {names[event]: _channel(event, names[event], exchange) for event in events},
        "operations": _operations(choreography, names),
        "components": {"messages": messages, "schemas": schemas},
    }
    return json.dumps(document, indent=2) + "\n"


def _key(event: str) -> str:
    """Component names allow letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", event)


def _channel(event: str, key: str, exchange: str) -> dict[str, Any]:
    return {
        "address": event,
        "messages": {key: {"$ref": f"#/components/messages/{key}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": "topic", "durable": True, "autoDelete": False},
                "bindingVersion": "0.3.0",
            }
        },
    }


def _operations(choreography: Choreography, names: Mapping[str, str]) -> dict[str, Any]:
    operations: dict[str, Any] = {}

    def add(manifest: Manifest, action: str, event: str, summary: str) -> None:
        name = _key(f"{manifest.service}.{action}.{event}")
        operations[name] = {
            "action": action,
            "channel": {"$ref": f"#/channels/{names[event]}"},
            "messages": [{"$ref": f"#/channels/{names[event]}/messages/{names[event]}"}],
            "summary": summary,
            "tags": [{"name": manifest.service}],
        }

    for manifest in choreography.services:
        for event in manifest.starts:
            add(manifest, "send", event, f"{manifest.service} starts a saga")
        for step in manifest.steps:
            for event in step.handles:
                add(manifest, "receive", event, _receives(manifest, step))
            for event in may_publish(step):
                add(manifest, "send", event, f"{manifest.service}: {step.name} says {short_name(event)}")
    return operations


def _receives(manifest: Manifest, step: Step) -> str:
    return step.summary or f"{manifest.service}: {step.name}"


def _message(choreography: Choreography, event: str, key: str, schemas: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": event,
        "title": short_name(event).replace("-", " "),
        "contentType": "application/json",
        "headers": {
            "type": "object",
            "required": ["ce-specversion", "ce-id", "ce-source", "ce-type"],
            "properties": {
                "ce-specversion": {"type": "string", "const": "1.0"},
                "ce-id": {"type": "string"},
                "ce-source": {"type": "string"},
                "ce-type": {"type": "string", "const": event},
                "ce-time": {"type": "string", "format": "date-time"},
                "ce-correlationid": {"type": "string", "description": "the saga"},
                "ce-causationid": {"type": "string", "description": "the event that caused this one"},
                "ce-partitionkey": {"type": "string", "description": "ordering key"},
            },
        },
        "correlationId": {"location": _CORRELATION},
    }
    schema = _schema(choreography, event)
    return message if schema is None else {**message, "payload": _hoisted(schema, key, schemas)}


def _schema(choreography: Choreography, event: str) -> Mapping[str, Any] | None:
    """Return the shape of an event's data; the service that says it knows best."""
    for manifest, _ in (*choreography.emitted().get(event, []), *choreography.handled().get(event, [])):
        if event in manifest.schemas:
            return manifest.schemas[event]
    return None


def _hoisted(schema: Mapping[str, Any], key: str, schemas: dict[str, Any]) -> Any:
    """Return a schema with its own definitions moved to the components of the document.

    A schema that stands alone refers to its definitions as ``#/$defs/Name``. Inside this document ``#`` is the
    document, so the definitions get a place in it, under a name that no other event's definition has.
    """
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    places = {f"#/$defs/{name}": f"#/components/schemas/{_key(f'{key}.{name}')}" for name in definitions}

    def moved(value: Any) -> Any:
        if isinstance(value, Mapping):
            found = cast("Mapping[str, Any]", value)
            return {
                name: places.get(each, each) if name == "$ref" and isinstance(each, str) else moved(each)
                for name, each in found.items()
            }
        if isinstance(value, list):
            items: list[Any] = value
            return [moved(each) for each in items]
        return value

    for name, definition in definitions.items():
        schemas[_key(f"{key}.{name}")] = moved(definition)
    return moved({name: value for name, value in schema.items() if name != "$defs"})
