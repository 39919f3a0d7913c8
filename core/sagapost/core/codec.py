"""Between a user's event object and the bytes of `Event.data`.

Encoded by msgspec: msgspec structs, dataclasses, TypedDicts, dicts. Encoded by pydantic: pydantic models, by their own
methods, so pydantic itself is never imported here. `bytes` pass through untouched.
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
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


class _PydanticModel(Protocol):
    """What is used of a pydantic model."""

    def model_dump_json(self) -> str: ...


@runtime_checkable
class _PydanticError(Protocol):
    """What is used of a pydantic validation error."""

    def errors(
        self, *, include_url: bool, include_context: bool, include_input: bool
    ) -> Sequence[Mapping[str, Any]]: ...


def encode_data(payload: object, *, event_type: str) -> tuple[bytes, str]:
    """Encode an event object; return (data, media type).

    NaN and the infinities, which JSON lacks, become null.

    :raises EncodingError: if a value in it has no JSON form.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload), OCTETS
    try:
        # Asked of the class and by name: isinstance with a protocol costs more than encoding the event.
        if hasattr(type(payload), "model_dump_json"):
            return cast("_PydanticModel", payload).model_dump_json().encode(), JSON
        return _encoder.encode(payload), JSON
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # pydantic's serialisation errors are ValueErrors; msgspec raises TypeError and its own ValueErrors.
        raise EncodingError(event_type=event_type, cls=type(payload), reason=str(error)) from error


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
        decoder = _decoders.get(cls)
        if decoder is None:
            decoder = _decoders[cls] = msgspec.json.Decoder(cls)
        return cast("T", decoder.decode(data))
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
