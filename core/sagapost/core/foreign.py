"""Foreign messages: those of other producers that are no CloudEvents, and the one policy by which an inbox reads them.

A reader turns what came into what a handler takes; the policy makes an identity of it (`sagapost.core.identity`) and
guards the reader, which may be users' code. sagapost's own messages, and all other CloudEvents, never come here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec

from sagapost.core.errors import ConfigurationError, SagapostError
from sagapost.core.identity import content_id, named_id

__all__ = ["ForeignMessageError", "ForeignMessages", "ForeignReader", "Incoming", "Reading"]

T = TypeVar("T")


class Incoming(msgspec.Struct):
    """What an adapter has read from the wire, before it is known to be an event."""

    body: bytes
    topic: str
    headers: Mapping[str, object]
    content_type: str | None = None
    content_encoding: str | None = None
    message_id: str | None = None
    type: str | None = None
    app_id: str | None = None
    correlation_id: str | None = None
    timestamp: datetime | None = None
    received_at: datetime | None = None
    """When it came, if that was not just now."""


class Reading(msgspec.Struct, kw_only=True):
    """What a reader has found in a foreign message. What it leaves out is taken from the message's properties."""

    data: bytes
    """What handlers decode."""
    content_type: str | None = None
    """Of `data`."""
    id: str | None = None
    type: str | None = None
    """What handlers name to get it."""
    source: str | None = None
    """The program, or part of one, within which the id is that of one message."""
    time: datetime | None = None
    key: str | None = None
    """The ordering key."""
    correlation: str | None = None
    """The saga, or conversation, that it belongs to."""


class ForeignMessageError(SagapostError):
    """A reader cannot read a message of its format; the reason is the rest of a sentence about the message.

    It must not quote the content: it is logged, and shown to operators.
    """

    def __init__(self, reason: str) -> None:
        self.reason = str(reason)
        super().__init__(self.reason)


class ForeignReader(Protocol):
    """How messages of one format are read. Quick, and without waiting for anything."""

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what is in the message; None: it is of another format.

        The body is unpacked and in UTF-8.

        :raises ForeignMessageError: if it is of this format and cannot be read; says why.
        """
        ...


Chosen: TypeAlias = Callable[[Incoming], str | None]
"""A function that takes a part of the identity from a message; None: as without it."""

_UNKNOWN = "urn:sagapost:unknown-source"
_TEXTS = ("content_type", "id", "type", "source", "key", "correlation")


@dataclass(frozen=True, slots=True)
class ForeignMessages:
    """How an inbox reads messages without a CloudEvents envelope.

    :param id_from: `message`: what the message names as its id; one without any is parked. `content`: one without any
        gets an id that follows from its content, so a redelivery is recognised, and so are two messages that were
        *meant* to be two but are equal byte for byte. Or a function that returns the id, or None for what the message
        names.
    :param source_from: the source of messages that name none, or a function that returns the source, or None for what
        the message names. Where neither names one, the id is followed by a digest of type and content: two unknown
        programs may both count 1, 2, 3, and neither's message is a duplicate of the other's.
    :param reader: reads the format that is expected, or several, of which the first that knows a message reads it;
        what none knows is read by its properties. Readers for formats in use are in `sagapost.adapters.foreign`.
    :raises ConfigurationError: if one of them is nothing of the kind.
    """

    id_from: Literal["message", "content"] | Chosen = "message"
    source_from: str | Chosen = _UNKNOWN
    reader: ForeignReader | tuple[ForeignReader, ...] = ()

    def __post_init__(self) -> None:
        if self.id_from not in ("message", "content") and not callable(self.id_from):
            raise ConfigurationError(
                f"ForeignMessages(id_from) is 'message', 'content' or a function, not {self.id_from!r}."
            )
        if not callable(self.source_from) and (type(self.source_from) is not str or not self.source_from):
            raise ConfigurationError("ForeignMessages(source_from) is some text or a function.")
        if not all(callable(each) for each in self._readers()):
            raise ConfigurationError("ForeignMessages(reader) is a reader or a tuple of readers.")

    def _readers(self) -> tuple[ForeignReader, ...]:
        return self.reader if isinstance(self.reader, tuple) else (self.reader,)

    def read(self, message: Incoming) -> Reading:
        """Read a message; what is returned has a type, a source, and an id that no other message has.

        :raises ForeignMessageError: if nothing can be made of it; whatever readers and functions do, nothing else.
        """
        found = self._found(message)
        type_ = found.type or message.type or message.topic
        if not type_:
            raise ForeignMessageError(
                "it has no CloudEvents attributes, no type property and no routing key to name its type"
            )
        chosen = None if isinstance(self.source_from, str) else _chosen("source_from", self.source_from, message)
        named = chosen or found.source or message.app_id
        source = named or (self.source_from if isinstance(self.source_from, str) else _UNKNOWN)
        correlation = found.correlation or message.correlation_id
        time = found.time or message.timestamp
        id_ = None if isinstance(self.id_from, str) else _chosen("id_from", self.id_from, message)
        id_ = id_ or found.id or message.message_id
        if id_:
            id_ = named_id(id_, type_, message.body, known_source=bool(named))
        elif self.id_from == "content":
            # Nothing that a broker adds on redelivery.
            parts = (source, type_, message.content_type or "", correlation or "", time.isoformat() if time else "")
            id_ = content_id(parts, message.body)
        else:
            raise ForeignMessageError(
                "it has neither CloudEvents attributes nor a message id, so a redelivery could not be recognised"
            )
        return Reading(
            data=found.data,
            content_type=found.content_type,
            id=id_,
            type=type_,
            source=source,
            time=time,
            key=found.key,
            correlation=correlation,
        )

    def _found(self, message: Incoming) -> Reading:
        for reader in self._readers():
            found = _guarded(f"the reader {_name(reader)}", partial(reader, _copy(message)))
            if found is not None:
                return _checked(reader, found)
        return Reading(data=message.body, content_type=message.content_type)


def _copy(message: Incoming) -> Incoming:
    """Return what users' code may change as it likes."""
    return msgspec.structs.replace(message, headers=dict(message.headers))


def _chosen(option: str, function: Chosen, message: Incoming) -> str | None:
    who = f"the function {option}= {_name(function)}"
    value: object = _guarded(who, partial(function, _copy(message)))
    if value is None or type(value) is str:
        return value
    raise ForeignMessageError(f"{who} returned {_kind(value)}, which is no text")


def _guarded(who: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except BaseException as error:  # nothing is awaited, so whatever it is, it is all theirs
        if type(error) is ForeignMessageError:
            raise
        raise ForeignMessageError(f"{who} raised {_kind(error)}") from error


def _checked(reader: ForeignReader, found: Any) -> Reading:
    """Return what a reader has returned, if it is something that a handler can be given."""
    who = f"the reader {_name(reader)}"
    if inspect.iscoroutine(found):
        found.close()
        raise ForeignMessageError(f"{who} is async def; a reader returns at once")
    if type(found) is not Reading:
        raise ForeignMessageError(f"{who} returned {_kind(found)}, which is no Reading")
    if type(found.data) is not bytes:
        raise ForeignMessageError(f"{who} returned data of type {_kind(found.data)}; it must be bytes")
    for name in _TEXTS:
        value: object = getattr(found, name)
        if value is not None and type(value) is not str:
            raise ForeignMessageError(f"{who} returned {name!r} of type {_kind(value)}; it must be text")
    time: Any = found.time
    if time is not None:
        if not isinstance(time, datetime):
            raise ForeignMessageError(f"{who} returned 'time' of type {_kind(time)}; it must be a datetime")
        found.time = _guarded(f"the time returned by {who}", partial(_in_utc, time))
    return found


def _in_utc(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise ForeignMessageError("its time has no UTC offset")
    return time.astimezone(UTC)


def _name(function: object) -> str:
    """Return a name for people; whatever a callable of users has for one."""
    name = inspect.getattr_static(function, "__name__", None)
    name = function.__name__ if inspect.isfunction(function) else name
    return name if type(name) is str else _kind(function)


def _kind(value: object) -> str:
    return type(value).__name__
