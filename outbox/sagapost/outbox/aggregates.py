"""Domain events recorded on ORM aggregates, published by the session that the aggregate belongs to.

An aggregate that belongs to a session publishes at once, through that session, so its events share the fate of pending
objects: savepoints, rollbacks, clean sessions and bulk updates need nothing of their own. Only what is recorded before
the aggregate joins a session waits on the object, and follows it in.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, Unpack
from uuid import UUID

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, object_session, scoped_session, sessionmaker

from sagapost.core.envelope import Event
from sagapost.core.errors import ConfigurationError
from sagapost.outbox.options import PublishOptions
from sagapost.outbox.session import withdraw_pending

__all__ = ["Recorder", "SessionSource", "capture", "captures"]

SessionSource: TypeAlias = (
    sessionmaker[Any]
    | async_sessionmaker[Any]
    | scoped_session[Any]
    | async_scoped_session[Any]
    | Session
    | AsyncSession
    | type[Session]
)
"""Where sessions come from, or one of them."""

_CAPTURE = "__sagapost_capture__"


class _Publisher(Protocol):
    """What is used of `Outbox`."""

    def publish(self, handle: Session, payload: object, /, **options: Unpack[PublishOptions]) -> Event: ...


class Recorder:
    """Mix into a mapped class whose methods record domain events.

    ::

        class Order(Recorder, Base):
            def cancel(self) -> None:
                self.status = "cancelled"
                self.record(OrderCancelled(order_id=self.id), key=self.id)

    `Session.merge` copies an object's columns and not what it recorded: record on the object that merge returns.
    """

    def record(self, payload: object, /, **options: Unpack[PublishOptions]) -> None:
        """Publish `payload` with this object's transaction; the arguments are those of `Outbox.publish`.

        On an object that belongs to no session yet, the event waits and is published when the object is added.

        :raises ConfigurationError: if the object's session captures nothing (see `Outbox.capture`).
        :raises PublishError: if the event cannot be published; on an object without a session, when it is added.
        """
        session = object_session(self)
        if session is None:
            _waiting(self).append((payload, options))
        else:
            _publisher(session, self).publish(session, payload, **options)


def capture(publisher: _Publisher, sessions: object) -> None:
    """Let sessions publish, through `publisher`, what `Recorder` objects in them record.

    :raises TypeError: if `sessions` is none of `SessionSource`.
    """
    match sessions:
        case sessionmaker() | async_sessionmaker():
            sessions.configure(info={**(sessions.kw.get("info") or {}), _CAPTURE: publisher})
        case scoped_session() | async_scoped_session():
            capture(publisher, sessions.session_factory)
        case Session() | AsyncSession():
            sessions.info[_CAPTURE] = publisher
        case type() if issubclass(sessions, Session) and sessions is not Session:
            setattr(sessions, _CAPTURE, publisher)
        case _:
            raise TypeError(
                f"capture() takes a sessionmaker, a session, or your own subclass of Session, not {sessions!r}"
            )


def captures(sessions: type[Session]) -> bool:
    """Return whether every session of this class publishes what is recorded in it."""
    return hasattr(sessions, _CAPTURE)


def _publisher(session: Session, recorder: Recorder) -> _Publisher:
    found: _Publisher | None = session.info.get(_CAPTURE) or getattr(session, _CAPTURE, None)
    if found is None:
        raise ConfigurationError(
            f"{type(recorder).__qualname__} recorded an event, and its session publishes none. "
            "Call outbox.capture(sessions) once with the sessionmaker."
        )
    return found


# Kept in the instance's dict under names of their own: an annotation or a default on the mixin would be taken for a
# column or a dataclass field by declarative mapping.
_WAITING = "__sagapost_waiting__"
_JOINED = "__sagapost_joined__"


def _waiting(recorder: Recorder) -> list[tuple[object, PublishOptions]]:
    """Return what waits for this object to join a session."""
    waiting: list[tuple[object, PublishOptions]] = vars(recorder).setdefault(_WAITING, [])
    return waiting


@event.listens_for(Session, "transient_to_pending")
def _join(session: Session, instance: object) -> None:
    """A new object was added: publish what it recorded so far."""
    if isinstance(instance, Recorder) and _WAITING in vars(instance):
        publisher = _publisher(session, instance)
        vars(instance)[_JOINED] = [
            (payload, options, publisher.publish(session, payload, **options))
            for payload, options in _waiting(instance)
        ]
        del vars(instance)[_WAITING]


@event.listens_for(Session, "detached_to_persistent")
def _rejoin(session: Session, instance: object) -> None:
    """An object came back from outside any session: publish what it recorded there."""
    if isinstance(instance, Recorder) and _WAITING in vars(instance):
        for payload, options in _waiting(instance):
            _publisher(session, instance).publish(session, payload, **options)
        del vars(instance)[_WAITING]


@event.listens_for(Session, "pending_to_transient")
@event.listens_for(Session, "persistent_to_transient")
def _leave(session: Session, instance: object) -> None:
    """A new object was expunged or rolled back: its events leave with it, and wait for its next session."""
    if isinstance(instance, Recorder):
        joined: list[tuple[object, PublishOptions, Event]] = vars(instance).pop(_JOINED, [])
        for payload, options, published in joined:
            withdraw_pending(session, {"event_id": UUID(published.id)})
            _waiting(instance).append((payload, options))
