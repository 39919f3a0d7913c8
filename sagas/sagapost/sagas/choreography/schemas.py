"""JSON Schemas of events: of a class, compared between two services where they can hurt, and held against a value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import msgspec

__all__ = ["conflicts", "fields_of", "misfit", "schema_of"]

Schema = Mapping[str, Any]


def schema_of(cls: type) -> Mapping[str, Any] | None:
    """Return the JSON Schema of an event class; None where there is none to be had (bytes, plain dicts)."""
    if cls in {bytes, dict}:
        return None
    own = getattr(cls, "model_json_schema", None)
    if own is not None:
        generated: Mapping[str, Any] = own()
        return generated
    try:
        return msgspec.json.schema(cls)
    except TypeError:
        # A field whose type has no JSON Schema: the event still travels, only its shape is not on the map.
        return None


def fields_of(schema: Schema) -> Mapping[str, Schema] | None:
    """Return the schemas of an event's fields by name; None where it does not say which it has."""
    whole = _resolve(schema, schema)
    fields: Mapping[str, Schema] | None = whole.get("properties")
    return None if isinstance(whole.get("additionalProperties"), Mapping) else fields


def conflicts(emitted: Schema, handled: Schema) -> list[str]:
    """Return what a consumer needs that a publisher does not promise; empty if the two fit.

    A consumer may know fewer fields than are published (tolerant reader). It must not require one that is not, nor
    expect another type of one.
    """
    return list(_compare(_resolve(emitted, emitted), emitted, _resolve(handled, handled), handled, ""))


def _compare(emitted: Schema, emitted_root: Schema, handled: Schema, handled_root: Schema, path: str) -> Iterator[str]:
    where = path or "the event"
    types_emitted, types_handled = _types(emitted, emitted_root), _types(handled, handled_root)
    if types_emitted and types_handled and not types_emitted <= _widened(types_handled):
        yield f"{where} is published as {_names(types_emitted)} and expected as {_names(types_handled)}"
        return
    values_emitted, values_handled = _values(emitted), _values(handled)
    unexpected = [
        value for value in values_emitted or () if values_handled is not None and value not in values_handled
    ]
    if unexpected:
        yield f"{where} may be published as {', '.join(map(repr, unexpected))}, which the consumer does not know"
    formats = emitted.get("format"), handled.get("format")
    if None not in formats and formats[0] != formats[1]:
        yield f"{where} is published as a {formats[0]} and expected as a {formats[1]}"
    fields_emitted = cast("Mapping[str, Schema]", emitted.get("properties", {}))
    fields_handled = cast("Mapping[str, Schema]", handled.get("properties", {}))
    required_emitted = set(cast("list[str]", emitted.get("required", [])))
    for name in cast("list[str]", handled.get("required", [])):
        inner = f"{path}.{name}" if path else name
        if fields_emitted and name not in fields_emitted:
            yield f"{inner} is required by the consumer and never published"
        elif fields_emitted and name not in required_emitted and "default" not in fields_emitted[name]:
            yield f"{inner} is required by the consumer and only sometimes published"
    for name, expected in fields_handled.items():
        if name in fields_emitted:
            yield from _compare(
                _resolve(fields_emitted[name], emitted_root),
                emitted_root,
                _resolve(expected, handled_root),
                handled_root,
                f"{path}.{name}" if path else name,
            )
    if isinstance(emitted.get("items"), Mapping) and isinstance(handled.get("items"), Mapping):
        yield from _compare(
            _resolve(emitted["items"], emitted_root),
            emitted_root,
            _resolve(handled["items"], handled_root),
            handled_root,
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


# --- a value ---

_KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "array": (list, tuple),
    "object": (dict,),
}
_WORDS = {"string": "text", "integer": "a whole number", "boolean": "true or false", "array": "a list"}
_FORMATS: Mapping[str, Callable[[str], object]] = {
    "date-time": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "uuid": UUID,
    "decimal": Decimal,
}


def misfit(value: object, schema: Schema, root: Schema | None = None) -> str | None:
    """Return why a JSON value does not fit a schema, without the value; None if nothing speaks against it.

    Judges by what schema generators write for event classes. What it does not know it lets pass: whoever reads the
    event has the last word.
    """
    root = schema if root is None else root
    schema = _resolve(schema, root)
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list):
            found = [misfit(value, option, root) for option in cast("list[Schema]", options)]
            if found and all(found):
                return " and ".join(dict.fromkeys(filter(None, found)))
    values = _values(schema)
    if values is not None and value not in values:
        return f"it is none of {', '.join(map(repr, values))}"
    declared = _types(schema, root) if "type" in schema else set[str]()
    if declared and not any(_is(value, kind) for kind in declared):
        return f"it is not {' or '.join(_WORDS.get(kind, f'a {kind}') for kind in sorted(declared))}"
    if isinstance(value, str):
        return _misfit_of_text(value, schema)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _misfit_of_number(value, schema)
    if isinstance(value, list | tuple):
        return _misfit_of_list(cast("Sequence[object]", value), schema, root)
    if isinstance(value, dict):
        return _misfit_of_object(cast("Mapping[str, object]", value), schema, root)
    return None


def _is(value: object, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _KINDS.get(kind, (object,)))


def _misfit_of_text(value: str, schema: Schema) -> str | None:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"it has {len(value)} characters, too few or too many"
    pattern = schema.get("pattern")
    if isinstance(pattern, str) and re.search(pattern, value) is None:
        return f"it is not of the form {pattern}"
    read = _FORMATS.get(str(schema.get("format")))
    try:
        if read is not None:
            read(value)
    except (ValueError, ArithmeticError):
        return f"it is no {schema['format']}"
    return None


def _misfit_of_number(value: float, schema: Schema) -> str | None:
    bounds = (
        (value < schema.get("minimum", value), "minimum"),
        (value > schema.get("maximum", value), "maximum"),
        ("exclusiveMinimum" in schema and value <= schema.get("exclusiveMinimum", value), "exclusiveMinimum"),
        ("exclusiveMaximum" in schema and value >= schema.get("exclusiveMaximum", value), "exclusiveMaximum"),
    )
    return next((f"it is out of range ({name} {schema[name]})" for outside, name in bounds if outside), None)


def _misfit_of_list(value: Sequence[object], schema: Schema, root: Schema) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"it has {len(value)} items, too few or too many"
    first = cast("list[Schema]", schema.get("prefixItems", []))
    rest = schema.get("items")
    for n, item in enumerate(value):
        of_item = first[n] if n < len(first) else rest
        why = misfit(item, cast("Schema", of_item), root) if isinstance(of_item, Mapping) else None
        if why is not None:
            return f"item {n}: {why}"
    return None


def _misfit_of_object(value: Mapping[str, object], schema: Schema, root: Schema) -> str | None:
    fields = cast("Mapping[str, Schema]", schema.get("properties", {}))
    for name in cast("list[str]", schema.get("required", [])):
        if name not in value:
            return f"it lacks {name!r}"
    others = schema.get("additionalProperties")
    for name, item in value.items():
        of_item = fields.get(name, others)
        why = misfit(item, cast("Schema", of_item), root) if isinstance(of_item, Mapping) else None
        if why is not None:
            return f"{name}: {why}"
    return None
