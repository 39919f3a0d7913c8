"""From a user's event object to a validated `Event`: identity, time, saga, size."""

from __future__ import annotations

from collections.abc import Mapping

from sagapost.core.clock import Clock
from sagapost.core.codec import encode_data
from sagapost.core.context import SagaContext, current
from sagapost.core.envelope import MAX_NAME_LENGTH, Event, validate_event
from sagapost.core.errors import EventTooLargeError, InvalidEventError
from sagapost.core.ids import new_id
from sagapost.core.naming import event_type_of
from sagapost.core.saga_keys import SAGA_KEYS

__all__ = ["seal", "validate_topic"]


def seal(
    payload: object,
    *,
    source: str,
    clock: Clock,
    max_bytes: int,
    key: str | None,
    type_: str | None,
    subject: str | None,
    datacontenttype: str | None,
    dataschema: str | None,
    extensions: Mapping[str, str] | None,
    correlationid: str | None,
) -> Event:
    """Return the event for `payload`: encoded, with a fresh id, the clock's time, and the running saga's ids.

    :raises UnnamedEventError: if neither the class nor `type_` names the event type.
    :raises EncodingError: if the payload has no encoded form.
    :raises EventTooLargeError: if the encoded payload is over `max_bytes`.
    :raises InvalidEventError: if an attribute breaks a rule.
    """
    event_type = type_ if type_ is not None else event_type_of(type(payload))
    data, media_type = encode_data(payload, event_type=event_type)
    if len(data) > max_bytes:
        raise EventTooLargeError(event_type=event_type, size=len(data), limit=max_bytes)
    saga = current()
    event = Event(
        id=new_id(),
        source=source,
        type=event_type,
        time=clock.now(),
        data=data,
        subject=subject,
        datacontenttype=datacontenttype if datacontenttype is not None else media_type,
        dataschema=dataschema,
        correlationid=correlationid if correlationid is not None or saga is None else saga.correlationid,
        causationid=saga.causationid if saga is not None else None,
        partitionkey=key,
        traceparent=saga.traceparent if saga is not None else None,
        tracestate=saga.tracestate if saga is not None else None,
        extensions=_extensions(extensions, saga),
    )
    # What the caller passed, since a UUID or a number in place of its text is the easiest mistake to make.
    for attribute in ("type", "partitionkey", "subject", "datacontenttype", "dataschema", "correlationid"):
        _require_text(attribute, getattr(event, attribute))
    for name, value in event.extensions.items():
        _require_text(f"extensions[{name!r}]", value)
    validate_event(event)
    return event


def _extensions(given: Mapping[str, str] | None, saga: SagaContext | None) -> Mapping[str, str]:
    """Return the extension attributes: the caller's, and the saga's business keys where it has any."""
    if saga is None or saga.keys is None:
        return dict(given) if given else {}
    return {SAGA_KEYS: saga.keys, **(given or {})}


def _require_text(attribute: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise InvalidEventError(attribute=attribute, value=value, reason="it must be a string: use str(...).")


def validate_topic(topic: str) -> None:
    """Check that a topic fits a routing key.

    :raises InvalidEventError: if it is empty, longer than 255 bytes, or holds characters that cannot be printed.
    """
    _require_text("topic", topic)
    # isprintable() is false for control characters and lone surrogates alike, so what passes has a UTF-8 form.
    if not topic.isprintable() or not 0 < len(topic.encode()) <= MAX_NAME_LENGTH:
        raise InvalidEventError(
            attribute="topic",
            value=topic,
            reason=f"a topic has 1 to {MAX_NAME_LENGTH} bytes of UTF-8, all of them printable.",
        )
