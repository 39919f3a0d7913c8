"""Between a user's event object and the bytes of `Event.data`.

Encoded by msgspec: msgspec structs, dataclasses, TypedDicts, dicts. Encoded by pydantic: pydantic models, by their own
methods, so pydantic itself is never imported here. `bytes` pass through untouched.

What is published can be read: an event whose own class could not read it back as it was is refused where it is
published, with the field that is the cause. Left out without a word is only what its class declares to be left out
(pydantic's `exclude=True`, private attributes).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from sagapost.core.errors import DecodingError, EncodingError

__all__ = ["JSON", "OCTETS", "decode_data", "encode_data"]

JSON = "application/json"
OCTETS = "application/octet-stream"

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_in_order = msgspec.json.Encoder(order="deterministic")
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


class _PydanticModel(Protocol):
    """What is used of a pydantic model."""

    def model_dump_json(self, *, by_alias: bool, round_trip: bool, warnings: bool) -> str: ...

    def model_dump(self, *, warnings: bool) -> dict[str, Any]: ...

    @classmethod
    def model_validate_json(cls, data: bytes, /) -> _PydanticModel: ...


@runtime_checkable
class _PydanticError(Protocol):
    """What is used of a pydantic validation error."""

    def errors(
        self, *, include_url: bool, include_context: bool, include_input: bool
    ) -> Sequence[Mapping[str, Any]]: ...


def encode_data(payload: object, *, event_type: str) -> tuple[bytes, str]:
    """Encode an event object; return (data, media type).

    A pydantic model is written by its aliases, with its computed fields where its class takes them back. NaN and the
    infinities, which JSON lacks, become null.

    :raises EncodingError: if a value in it has no JSON form, or could not be read back as it is.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload), OCTETS
    try:
        # Asked of the class and by name: isinstance with a protocol costs more than encoding the event.
        if hasattr(type(payload), "model_dump_json"):
            return _encode_model(cast("_PydanticModel", payload)), JSON
        data = _encoder.encode(payload)
        if isinstance(payload, msgspec.Struct) or _is_declared(type(payload)):
            _require_readable(payload, data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # pydantic's serialisation errors are ValueErrors; msgspec raises TypeError and its own ValueErrors.
        reason = _without_input(error)
        cause = error if reason is None else None
        raise EncodingError(event_type=event_type, cls=type(payload), reason=reason or str(error)) from cause
    return data, JSON


class _NotReadableError(ValueError):
    """What was written could not be read back as it was; the text says where."""


_without_computed: set[type] = set()
"""Models whose own class refuses their computed fields."""


def _encode_model(payload: _PydanticModel) -> bytes:
    cls = type(payload)
    if cls not in _without_computed:
        data = payload.model_dump_json(by_alias=True, round_trip=False, warnings=False).encode()
        try:
            _compare_models(payload, cls.model_validate_json(data))
        except ValueError as error:
            if not isinstance(error, _PydanticError):
                raise
        else:
            return data
    data = payload.model_dump_json(by_alias=True, round_trip=True, warnings=False).encode()
    try:
        back = cls.model_validate_json(data)
    except ValueError as error:
        raise _unreadable(_without_input(error) or str(error)) from None
    _compare_models(payload, back)
    _without_computed.add(cls)
    return data


def _compare_models(payload: _PydanticModel, back: _PydanticModel) -> None:
    if back == payload:
        return
    # Without what is excluded, and with secrets as such.
    different = _difference(payload.model_dump(warnings=False), back.model_dump(warnings=False))
    if different is not None:
        raise _changed(different)


def _is_declared(cls: type) -> bool:
    """Return whether a class is a dataclass or made by attrs: a plain dict has nothing it could be held against."""
    return hasattr(cls, "__dataclass_fields__") or hasattr(cls, "__attrs_attrs__")


def _require_readable(payload: object, data: bytes) -> None:
    try:
        back = _decoder(type(payload)).decode(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unreadable(str(error)) from None
    if back != payload:
        written, read = (msgspec.json.decode(_in_order.encode(each)) for each in (payload, back))
        different = _difference(written, read)
        if different is not None:
            raise _changed(different)


def _unreadable(reason: str) -> _NotReadableError:
    return _NotReadableError(f"its own class could not read it back: {reason}")


def _changed(path: str) -> _NotReadableError:
    return _NotReadableError(
        f"`{path}` would be read back as another value (a masked secret, or a validator that changes it again). Give "
        "the field a serializer that its class takes back, or declare it excluded"
    )


def _difference(written: object, read: object, path: str = "$") -> str | None:
    """Return where two dumps of an event differ; None: they do not.

    Where a field may be anything, JSON makes a text or a number of what it has no form for: that is no difference.
    """
    if isinstance(written, Mapping) and isinstance(read, Mapping):
        if written.keys() != read.keys():
            return f"{path}.{next(iter(written.keys() ^ read.keys()))}"
        each = ((f"{path}.{name}", value, read[name]) for name, value in written.items())
    elif isinstance(written, list | tuple) and isinstance(read, list | tuple):
        if len(written) != len(read):
            return path
        each = ((f"{path}[{n}]", value, read[n]) for n, value in enumerate(written))
    else:
        same = written == read or (type(written) is not type(read) and not hasattr(written, "get_secret_value"))
        return None if same else path
    return next((found for place, one, other in each if (found := _difference(one, other, place)) is not None), None)


def _decoder(cls: type[T]) -> msgspec.json.Decoder[T]:
    decoder = _decoders.get(cls)
    if decoder is None:
        decoder = _decoders[cls] = msgspec.json.Decoder(cls)
    return decoder


def decode_data(data: bytes, cls: type[T], *, event_id: str, event_type: str) -> T:
    """Decode `data` as an instance of `cls`.

    :raises DecodingError: if the bytes are not valid JSON or do not fit the class; the reason names the field.
    """
    if cls is bytes:
        return cast("T", data)
    try:
        validate = getattr(cls, "model_validate_json", None)
        if validate is not None:
            return cast("T", validate(data))
        return _decoder(cls).decode(data)
    except (TypeError, ValueError, RecursionError) as error:
        reason = _without_input(error)
        # A pydantic error prints the offending values, and a logged traceback prints its cause: it is not kept.
        cause = error if reason is None else None
        raise DecodingError(event_id=event_id, event_type=event_type, cls=cls, reason=reason or str(error)) from cause


def _without_input(error: Exception) -> str | None:
    """Return what a pydantic validation error complains of, field by field, without the values it found.

    None for errors of other kinds: msgspec's name the field and the expected type, never the value.
    """
    if not isinstance(error, _PydanticError):
        return None
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{detail['msg']} - at `{'.'.join(str(part) for part in ('$', *detail['loc']))}`" for detail in details
    )
