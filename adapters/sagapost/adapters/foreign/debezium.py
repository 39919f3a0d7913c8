"""Debezium's outbox event router: the id in the header `id`, the row's payload as the body (debezium.io)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from sagapost.adapters.foreign.values import decoded, header
from sagapost.core.foreign import Incoming, Reading

__all__ = ["DebeziumReader"]

_any = msgspec.json.Decoder(msgspec.Raw)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_string = msgspec.json.Decoder(str)


@dataclass(frozen=True, slots=True)
class DebeziumReader:
    """Reads what Debezium's outbox event router has made of rows of an outbox.

    A payload that the JSON converter has wrapped with its schema is unwrapped, and so is one that is JSON within a
    text, as the router leaves it without `table.expand.json.payload`. It names no source: give one with `source_from`.

    :param type_header: the header with the type (`table.fields.additional.placement=type:header:eventType`).
    :param key_header: the header with the ordering key, where the router is told to write one: the record's own key
        does not come along on every broker.
    """

    type_header: str = "eventType"
    key_header: str = "aggregateId"

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what is in header and payload; None: no header `id`, so it is not of the router."""
        headers = message.headers
        if "id" not in headers:
            return None
        return Reading(
            data=_payload(message.body),
            content_type="application/json",
            id=_plain(headers, "id"),
            type=_plain(headers, self.type_header),
            key=_plain(headers, self.key_header),
        )


def _plain(headers: Mapping[str, object], name: str) -> str | None:
    """Return the text of a header, which a JSON converter has put in quotes or wrapped with its schema."""
    text = header(headers, name)
    if text is None or text[0] not in '"{':
        return text
    raw = _unwrapped(text.encode("utf-8", "surrogatepass"), f"its header {name!r}")
    return decoded(raw, _string, f"its header {name!r}") if raw[:1] == b'"' else text


def _payload(body: bytes) -> bytes:
    if not body:
        # The row had none; with `route.tombstone.on.empty.payload` this is a tombstone.
        return body
    raw = _unwrapped(body, "its payload")
    if raw[:1] != b'"':
        return raw
    text = decoded(raw, _string, "its payload").encode("utf-8", "surrogatepass")
    return text if text[:1] in (b"{", b"[") else raw


def _unwrapped(body: bytes, what: str) -> bytes:
    """Return the payload beside a schema, or what is there without any."""
    raw = bytes(decoded(body, _any, what))
    if raw[:1] != b"{":
        return raw
    members = decoded(raw, _members, what)
    return bytes(members["payload"]) if members.keys() == {"schema", "payload"} else raw
