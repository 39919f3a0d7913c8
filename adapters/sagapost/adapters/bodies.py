"""A body as its producer wrote it, to the UTF-8 or the plain bytes that handlers are given.

What is undone: content encodings (RFC 9110, section 8.4: gzip and deflate), charsets of JSON and text other than
UTF-8, byte order marks. Bodies of other media types keep their charset: XML names its own inside.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib

import msgspec

__all__ = ["MAX_DECOMPRESSED_BYTES", "UnreadableBodyError", "media_type_of", "plain_body"]

MAX_DECOMPRESSED_BYTES = 64 * 2**20
"""A body that unpacks to more is refused: a few kilobytes can be made to fill any memory."""

_GZIP = frozenset({"gzip", "x-gzip"})
_NOTHING = frozenset({"", "identity", "binary", "8bit", "7bit"})
"""Names under which the body is what it is; the last three are of mail, and what some clients write here."""

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
_CHARSETS = ("utf-8", "utf-16", "utf-32", "ascii", "iso8859", "cp", "koi8", "gb", "big5", "euc_", "shift_jis", "mac")
"""Beginnings of Python's names for charsets. Its other codecs are none, and some can be made to run for minutes."""


class UnreadableBodyError(Exception):
    """A body cannot be undone; the text is the rest of a sentence about the message, without its content."""


def media_type_of(content_type: str | None) -> str:
    """Return the media type in lower case, as it is compared (RFC 9110, section 8.3.1), without parameters."""
    return (content_type or "").partition(";")[0].strip().lower()


def plain_body(body: bytes, content_type: str | None, content_encoding: str | None) -> tuple[bytes, str | None]:
    """Return the body in UTF-8, or as it was before it was packed, and the content type that is then true.

    :raises UnreadableBodyError: naming the encoding or the charset that is unknown, or that the body does not follow.
    """
    named = None
    for token in reversed((content_encoding or "").split(",")):
        encoding = token.strip().lower()
        if encoding in _GZIP or encoding == "deflate":
            body = _unpacked(body, encoding)
        elif encoding not in _NOTHING:
            # Some clients (kombu, Spring) name the charset here.
            named = _codec(encoding)
            if named is None:
                raise UnreadableBodyError(
                    f"its content encoding {encoding[:20]!r} is not read here; gzip and deflate are"
                )
    media_type = media_type_of(content_type)
    is_json = media_type.endswith(("/json", "+json"))
    if not is_json and media_type and (not media_type.startswith("text/") or media_type == "text/xml"):
        return body, content_type
    return _in_utf8(body, content_type, named, is_json=is_json)


def _in_utf8(body: bytes, content_type: str | None, named: str | None, *, is_json: bool) -> tuple[bytes, str | None]:
    charset = _charset_parameter(content_type)
    codec = _codec(charset) if charset is not None else named
    if charset is not None and codec is None:
        raise UnreadableBodyError(f"its charset {charset[:20]!r} is not known")
    if is_json and (codec is None or codec == "utf-8") and (body[:2] in _MARKS or b"\x00" in body[:4]):
        wide = _wide_json(body)
        if wide is not None:
            return wide, _with_utf8(content_type)
    if codec is None or codec.startswith("utf-8") or codec == "ascii":
        return body.removeprefix(codecs.BOM_UTF8), content_type
    try:
        text = body.decode(codec)
    except (UnicodeError, LookupError):
        raise UnreadableBodyError(f"its body is not valid in the charset {codec}") from None
    return text.removeprefix("\ufeff").encode(), _with_utf8(content_type)


_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def _wide_json(body: bytes) -> bytes | None:
    """Return JSON in UTF-16 or UTF-32, which nobody said it is in, in UTF-8; None: it is neither.

    Its first bytes tell. But any bytes may be an event's data, and some look alike: so it must also be an object or
    an array, or else nothing is changed.
    """
    try:
        found = body.decode(json.detect_encoding(body)).removeprefix("\ufeff").encode()
        members = msgspec.json.decode(found)
    except (UnicodeError, msgspec.DecodeError, RecursionError):
        return None
    return found if isinstance(members, dict | list) else None


def _charset_parameter(content_type: str | None) -> str | None:
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'").lower() or None
    return None


def _with_utf8(content_type: str | None) -> str | None:
    if content_type is None:
        return None
    media_type, *parameters = content_type.split(";")
    others = [each.strip() for each in parameters if each.partition("=")[0].strip().lower() != "charset"]
    return "; ".join([media_type.strip(), *others, "charset=utf-8"])


def _codec(name: str) -> str | None:
    """Return Python's name of a charset; None if it is none that is read."""
    if _NAME.fullmatch(name) is None:
        return None
    try:
        found = codecs.lookup(name).name
    except (LookupError, ValueError):
        return None
    return found if found.startswith(_CHARSETS) else None


def _unpacked(body: bytes, encoding: str) -> bytes:
    if encoding in _GZIP:
        return _inflated(body, encoding, zlib.MAX_WBITS | 16)
    # By the standard a zlib stream; some programs leave its header out.
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0
    return _inflated(body, encoding, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _inflated(body: bytes, encoding: str, bits: int) -> bytes:
    unpacked, left = bytearray(), body
    while True:
        stream = zlib.decompressobj(bits)
        try:
            unpacked += stream.decompress(left, MAX_DECOMPRESSED_BYTES + 1 - len(unpacked))
        except zlib.error:
            raise UnreadableBodyError(f"its content encoding is {encoding!r}, and its body is not") from None
        if len(unpacked) > MAX_DECOMPRESSED_BYTES:
            raise UnreadableBodyError(
                f"its body, of content encoding {encoding!r}, unpacks to more than {MAX_DECOMPRESSED_BYTES} bytes"
            )
        if not stream.eof:
            raise UnreadableBodyError(f"its body ends before its {encoding} stream does")
        left = stream.unused_data
        if not left or encoding not in _GZIP:
            # A gzip file may have several members (RFC 1952, section 2.2).
            return bytes(unpacked)
