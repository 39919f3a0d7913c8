"""From the bytes of delivered frames to what was in them: method arguments, properties, header table.

Read by hand for the same reason as `frames` writes by hand. Field values other than text are rare (brokers add
some, for example x-delivery-count), so those go through pamqp's decoder.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from struct import Struct
from typing import cast

from pamqp import decode

from sagapost.core.foreign import Incoming

__all__ = ["ContentError", "read_incoming", "read_message_id", "read_short"]

_U32 = Struct(">I").unpack_from
_U64 = Struct(">Q").unpack_from
_FLAGS = Struct(">H").unpack_from
_S = 0x53


class ContentError(Exception):
    """A content header that breaks the protocol's layout; says where."""


def read_short(data: bytes, at: int) -> tuple[str, int]:
    """Read a short string; return it with the place behind it."""
    stop = at + 1 + data[at]
    return data[at + 1 : stop].decode("utf-8", "backslashreplace"), stop


def read_incoming(properties: bytes, body: bytes, topic: str) -> Incoming:
    """Read the property flags and list of a content header.

    :raises ContentError: if they break the protocol's layout.
    """
    try:
        return _read(properties, body, topic)
    except (IndexError, struct.error, ValueError, OverflowError, OSError) as error:
        raise ContentError(f"its AMQP properties cannot be read ({error})") from error


def read_message_id(properties: bytes) -> str | None:
    """Read the message id alone, of a returned message."""
    return read_incoming(properties, b"", "").message_id


def _read(data: bytes, body: bytes, topic: str) -> Incoming:
    (flags,) = _FLAGS(data, 0)
    at = 2
    incoming = Incoming(body=body, topic=topic, headers={})
    if flags & 1 << 15:
        incoming.content_type, at = read_short(data, at)
    if flags & 1 << 14:
        incoming.content_encoding, at = read_short(data, at)
    if flags & 1 << 13:
        incoming.headers, at = _read_table(data, at)
    at += (flags >> 12 & 1) + (flags >> 11 & 1)  # delivery_mode and priority, one octet each
    if flags & 1 << 10:
        incoming.correlation_id, at = read_short(data, at)
    if flags & 1 << 9:
        _, at = read_short(data, at)  # reply_to
    if flags & 1 << 8:
        _, at = read_short(data, at)  # expiration
    if flags & 1 << 7:
        incoming.message_id, at = read_short(data, at)
    if flags & 1 << 6:
        incoming.timestamp = _moment(cast("int", _U64(data, at)[0]))
        at += 8
    if flags & 1 << 5:
        incoming.type, at = read_short(data, at)
    if flags & 1 << 4:
        _, at = read_short(data, at)  # user_id
    if flags & 1 << 3:
        incoming.app_id, at = read_short(data, at)
    return incoming


def _moment(stamp: int) -> datetime | None:
    # Seconds by the protocol; some clients write milliseconds, which as seconds would lie after the year 2106.
    try:
        return datetime.fromtimestamp(stamp if stamp <= 0xFFFFFFFF else stamp / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _read_table(data: bytes, at: int) -> tuple[dict[str, object], int]:
    at += 4
    stop = at + _U32(data, at - 4)[0]
    if stop > len(data):
        raise ValueError("the header table is longer than the frame")
    table: dict[str, object] = {}
    while at < stop:
        tag = at + 1 + data[at]
        name = data[at + 1 : tag].decode("utf-8", "backslashreplace")
        if data[tag] == _S:
            start = tag + 5
            at = start + _U32(data, tag + 1)[0]
            raw = data[start:at]
            try:
                table[name] = raw.decode()
            except UnicodeDecodeError:
                table[name] = raw
        else:
            table[name], at = _read_other(data, tag)
    if at != stop:
        raise ValueError("a header is longer than its table")
    return table, at


def _read_other(data: bytes, at: int) -> tuple[object, int]:
    try:
        used, value = decode.embedded_value(data[at:])
    except RecursionError:
        # Lists or tables in each other, a thousand deep: kept as they came. Both begin with their length.
        start = at + 5
        stop = start + _U32(data, at + 1)[0]
        return data[start:stop], stop
    return value, at + used
