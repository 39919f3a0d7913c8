"""Between a user's event object and the bytes of `Event.data`.

Encoded by msgspec: msgspec structs, dataclasses, TypedDicts, dicts. Encoded by pydantic: pydantic models, by their own
methods, so pydantic itself is never imported here. `bytes` pass through untouched.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import msgspec

from sagapost.core.errors import DecodingError, EncodingError

__all__ = ["JSON", "OCTETS", "decode_data", "encode_data"]

JSON = "application/json"
OCTETS = "application/octet-stream"

T = TypeVar("T")

_encoder = msgspec.json.Encoder()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


@runtime_checkable
class _PydanticModel(Protocol):
    """What is used of a pydantic model."""

    def model_dump_json(self) -> str: ...


def encode_data(payload: object, *, event_type: str) -> tuple[bytes, str]:
    """Encode an event object; return (data, media type).

    :raises EncodingError: if a value in it has no JSON form.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload), OCTETS
    try:
        if isinstance(payload, _PydanticModel):
            return payload.model_dump_json().encode(), JSON
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
        raise DecodingError(event_id=event_id, event_type=event_type, cls=cls, reason=str(error)) from error
