"""What a step records for its compensation can be read days later, or is refused while it can be corrected."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from sagapost.core.errors import EncodingError
from sagapost.sagas.compensations import CompensationDeclaration, declare


class Line(msgspec.Struct):
    item: str
    price: Decimal


def taking(kind: Any) -> CompensationDeclaration:
    async def undo(ctx: object, *, value: Any) -> None: ...

    undo.__annotations__ = {"value": kind, "return": None}
    return declare(undo, name="undo", emits=())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Decimal, Decimal("0.10")),
        (UUID, UUID(int=7)),
        (datetime, datetime(2026, 3, 29, 2, 30, tzinfo=UTC)),
        (timedelta, timedelta(days=2)),
        (list[Line], [Line("x", Decimal("1.50"))]),
        (dict[int, str], {1: "a"}),
        (bytes, b"\x00\xff"),
        (str, r"no NUL: \u0000"),
        (str | None, None),
        (int, 2**70),
        (Any, "anything"),
    ],
)
def test_what_is_recorded_comes_back(kind: Any, value: Any) -> None:
    """Through JSON, as the ledger keeps it."""
    declaration = taking(kind)
    kept = msgspec.json.decode(msgspec.json.encode(declaration.pack({"value": value})))
    assert declaration.unpack(kept) == {"value": value}


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (float, math.nan, "NaN"),
        (list[float], [1.0, -math.inf], "NaN"),
        (str, "a\x00b", "NUL"),
        (dict[str, str], {"\\\x00": "a"}, "NUL"),
        (str, "a\ud800", "surrogate|utf-8"),
        (datetime | str, "2026-01-01T00:00:00Z", "could not be read again"),
        (int, "seven", "could not be read again"),
        (Any, object(), "object"),
    ],
)
def test_what_could_not_be_read_again_is_refused_when_it_is_recorded(kind: Any, value: Any, reason: str) -> None:
    """By an error of ours, in the step, and not by a driver's or when the saga is undone."""
    with pytest.raises(EncodingError, match=reason):
        taking(kind).pack({"value": value})
