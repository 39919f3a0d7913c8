"""Lifecycle events as the tracker reads them: the library's own types, in whatever shape somebody sends them.

A newer or older release, or a foreign producer that uses the names, may send another shape. Nothing here raises for
what stands in an event: what is kept of its data is flat and bounded, and what does not fit the class of its type is
part of the history and of nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

from sagapost.core.naming import event_type_of
from sagapost.sagas import events

__all__ = ["CLASSES", "LIFECYCLE", "Detail", "clean", "detail_of", "lifecycle_of"]

LIFECYCLE = "sagapost.saga."
"""Event types that the library itself publishes begin with this; their data is about the saga and is kept."""

Detail: TypeAlias = Mapping[str, Any]
"""Text, numbers, booleans, None, and lists of text, by name."""

_TEXT = 1_000
"""Characters kept of one text. A history is rewritten with each fold, so what is kept of an event is small."""
_FIELDS = 16
_ITEMS = 100
_INT64 = 2**63

CLASSES: Mapping[str, type] = {
    event_type_of(cls): cls
    for cls in (
        events.RollbackRequested,
        events.RetryRequested,
        events.RollbackStarted,
        events.CompensationDone,
        events.CompensationStuck,
        events.RolledBack,
        events.TaskOpened,
        events.TaskEnded,
        events.IslandStarted,
        events.IslandStepChanged,
        events.IslandEnded,
    )
}
"""Type -> the class that this release publishes."""

_DATA = msgspec.json.Decoder(dict[str, Any])


def detail_of(data: bytes) -> Detail:
    """Return what is kept of a lifecycle event's data.

    :raises ValueError, RecursionError: if it is no JSON object, or nested too deep.
    """
    kept: dict[str, Any] = {}
    for name, value in list(_DATA.decode(data).items())[:_FIELDS]:
        if isinstance(value, list):
            kept[clean(name)] = [clean(item) for item in value[:_ITEMS] if isinstance(item, str)]
        elif isinstance(value, str):
            kept[clean(name)] = clean(value)
        elif value is None or isinstance(value, bool | float) or -_INT64 <= _as_int(value) < _INT64:
            kept[clean(name)] = value
    return kept


def _as_int(value: object) -> int:
    return value if isinstance(value, int) else _INT64


def clean(text: str) -> str:
    """Return text that every database can hold: bounded, and without NUL."""
    return text[:_TEXT].replace("\x00", "\N{REPLACEMENT CHARACTER}")


def lifecycle_of(type_: str, detail: Detail) -> object | None:
    """Return the lifecycle event that an entry of a history stands for; None if no type of this release has the name.

    :raises msgspec.ValidationError: if the data is of another shape than the class of its type.
    """
    cls = CLASSES.get(type_)
    return msgspec.convert(detail, cls) if cls is not None else None
