"""What readers of several formats need: texts in headers, times, and JSON whose errors name the place."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeVar

import msgspec

from sagapost.core.foreign import ForeignMessageError

__all__ = ["decoded", "header", "iso_time"]

T = TypeVar("T")


def header(headers: Mapping[str, object], name: str) -> str | None:
    """Return the text of a header; None: it is missing or empty.

    :raises ForeignMessageError: if it is no text.
    """
    value = headers.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, bytes | bytearray):
        try:
            return bytes(value).decode() or None
        except UnicodeDecodeError:
            raise ForeignMessageError(f"its header {name!r} is not valid UTF-8") from None
    raise ForeignMessageError(f"its header {name!r} is of type {type(value).__name__}, not text")


def iso_time(text: str | None, what: str) -> datetime | None:
    """Return a time in ISO 8601; one without an offset is in UTC.

    :raises ForeignMessageError: if it is none; `what` names it.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ForeignMessageError(f"its {what} is no time in ISO 8601") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def decoded(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Return what is in a body of JSON.

    :raises ForeignMessageError: if it is not valid JSON, or of another shape; `what` names it.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise ForeignMessageError(f"{what} has another shape: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ForeignMessageError(f"{what} is not valid JSON ({type(error).__name__})") from error
