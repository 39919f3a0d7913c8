"""Whether two services mean the same by an event: their JSON Schemas, compared where they can hurt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

__all__ = ["conflicts"]

Schema = Mapping[str, Any]


def conflicts(said: Schema, heard: Schema) -> list[str]:
    """Return what a hearer needs that a sayer does not promise; empty if the two fit.

    A hearer may know fewer fields than are said (tolerant reader). It must not require one that is not said, nor
    expect another type of one.
    """
    return list(_compare(_resolve(said, said), said, _resolve(heard, heard), heard, ""))


def _compare(said: Schema, said_root: Schema, heard: Schema, heard_root: Schema, path: str) -> Iterator[str]:
    where = path or "the event"
    types_said, types_heard = _types(said, said_root), _types(heard, heard_root)
    if types_said and types_heard and not types_said <= _widened(types_heard):
        yield f"{where} is said as {_names(types_said)} and expected as {_names(types_heard)}"
        return
    values_said, values_heard = _values(said), _values(heard)
    unexpected = [value for value in values_said or () if values_heard is not None and value not in values_heard]
    if unexpected:
        yield f"{where} may be said as {', '.join(map(repr, unexpected))}, which the hearer does not know"
    formats = said.get("format"), heard.get("format")
    if None not in formats and formats[0] != formats[1]:
        yield f"{where} is said as a {formats[0]} and expected as a {formats[1]}"
    fields_said = cast("Mapping[str, Schema]", said.get("properties", {}))
    fields_heard = cast("Mapping[str, Schema]", heard.get("properties", {}))
    required_said = set(cast("list[str]", said.get("required", [])))
    for name in cast("list[str]", heard.get("required", [])):
        inner = f"{path}.{name}" if path else name
        if fields_said and name not in fields_said:
            yield f"{inner} is required by the hearer and never said"
        elif fields_said and name not in required_said and "default" not in fields_said[name]:
            yield f"{inner} is required by the hearer and only sometimes said"
    for name, expected in fields_heard.items():
        if name in fields_said:
            yield from _compare(
                _resolve(fields_said[name], said_root),
                said_root,
                _resolve(expected, heard_root),
                heard_root,
                f"{path}.{name}" if path else name,
            )
    if isinstance(said.get("items"), Mapping) and isinstance(heard.get("items"), Mapping):
        yield from _compare(
            _resolve(said["items"], said_root),
            said_root,
            _resolve(heard["items"], heard_root),
            heard_root,
            f"{path}[]",
        )


def _resolve(schema: Schema, root: Schema) -> Schema:
    """Follow local references, as schema generators write them; a few hops at most."""
    for _ in range(20):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        found: Any = root
        for part in reference[2:].split("/"):
            found = found.get(part, {}) if isinstance(found, Mapping) else {}
        schema = cast("Schema", found)
    return schema


def _types(schema: Schema, root: Schema) -> set[str]:
    """Return the JSON types a schema allows; empty if it does not say."""
    declared = schema.get("type")
    if isinstance(declared, str):
        return {declared}
    if isinstance(declared, list):
        return set(cast("list[str]", declared))
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            found = [_types(_resolve(option, root), root) for option in cast("list[Schema]", options)]
            return set().union(*found) if all(found) else set()
    return set()


def _values(schema: Schema) -> list[Any] | None:
    """Return the only values a schema allows; None if it does not list them."""
    if "const" in schema:
        return [schema["const"]]
    listed: list[Any] | None = schema.get("enum")
    return listed


def _widened(types: set[str]) -> set[str]:
    """Every integer is a number."""
    return types | {"integer"} if "number" in types else types


def _names(types: set[str]) -> str:
    return " or ".join(sorted(types))
