"""The choreography as an AsyncAPI 3 document: channels are topics, operations are steps.

Only what the code declares is stated; nothing is guessed. Specification: AsyncAPI 3.0.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.choreography.manifest import Choreography, Manifest, Step, sayings

__all__ = ["to_asyncapi"]

_CORRELATION = "$message.header#/ce-correlationid"


def to_asyncapi(choreography: Choreography, *, title: str = "Choreography", exchange: str = "sagapost") -> str:
    """Return the document as JSON.

    :param exchange: the RabbitMQ topic exchange that the events go through.
    """
    events = choreography.events()
    names = {event: _key(event) for event in events}
    document: dict[str, Any] = {
        "asyncapi": "3.0.0",
        "info": {"title": title, "version": "1.0.0"},
        "defaultContentType": "application/json",
        "channels": {names[event]: _channel(event, names[event], exchange) for event in events},
        "operations": _operations(choreography, names),
        "components": {"messages": {names[event]: _message(choreography, event) for event in events}},
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
            for event in step.hears:
                add(manifest, "receive", event, _receives(manifest, step))
            for event in sayings(step):
                add(manifest, "send", event, f"{manifest.service}: {step.name} says {short_name(event)}")
    return operations


def _receives(manifest: Manifest, step: Step) -> str:
    return step.summary or f"{manifest.service}: {step.name}"


def _message(choreography: Choreography, event: str) -> dict[str, Any]:
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
    # The service that says an event knows its shape best.
    for manifest, _ in choreography.said().get(event, []):
        if event in manifest.schemas:
            return {**message, "payload": manifest.schemas[event]}
    for manifest, _ in choreography.heard().get(event, []):
        if event in manifest.schemas:
            return {**message, "payload": manifest.schemas[event]}
    return message
