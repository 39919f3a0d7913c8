"""Every error sagapost raises on purpose, as one tree.

::

    SagapostError
    ├── ConfigurationError            a setting, URL, or declaration is wrong; fix it and start again
    │   ├── MissingExtraError         an optional dependency is absent; the message names the extra
    │   └── TopologyConflictError     a queue or exchange exists with other arguments
    ├── PublishError                  `Outbox.publish` refused the event; the caller's transaction is untouched
    │   ├── NotInTransactionError     publish was called outside a transaction
    │   ├── UnnamedEventError         the class carries no `@event("name.v1")`
    │   ├── EncodingError             the event cannot be serialised
    │   ├── EventTooLargeError        the encoded event is over the limit
    │   └── InvalidEventError         an attribute breaks a rule (key length, empty type, ...)
    ├── NotFoundError                 an operator named what is not there; the message says where to look
    ├── ConflictError                 what an operator wants cannot be done any more, or not now; the message says why
    ├── DecodingError                 a message cannot be read as the declared class
    ├── SchemaError                   the database lacks the tables or has other ones; run `sagapost db upgrade`
    │   └── UpgradeBlockedError       others held a table for so long that it could not be changed; run it again
    ├── HandlerError                  a handler broke its contract (committed, closed or leaked the session)
    ├── BrokerError                   the broker failed a call
    │   ├── BrokerUnavailableError    cannot be reached now; retried with backoff
    │   └── BrokerRefusedError        reached, and said no (credentials, permissions, vhost); a person must act
    └── StoreError                    the database failed a call
        ├── StoreUnavailableError     cannot be reached now; retried with backoff
        ├── StoreRefusedError         reached, and said no (credentials, permissions, no such database)
        └── LeaseLostError            a terminal write came with a token that no longer owns the partition

Attributes carry the data; the sentence says what happened, to which row or message, and what to do next.
"""

from __future__ import annotations


class SagapostError(Exception):
    """Root of every error sagapost raises on purpose."""


class ConfigurationError(SagapostError):
    """A setting or declaration is wrong; nothing was started."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed."""

    def __init__(self, *, module: str, extra: str, purpose: str) -> None:
        self.module = module
        self.extra = extra
        super().__init__(
            f"{purpose} needs the package {module!r}, which is not installed. "
            f"Install it with: pip install 'sagapost[{extra}]'"
        )


class TopologyConflictError(ConfigurationError):
    """A queue or exchange exists on the broker with other arguments than the ones asked for."""

    def __init__(self, *, entity: str, name: str, argument: str, detail: str) -> None:
        self.entity = entity
        self.name = name
        self.argument = argument
        super().__init__(
            f"The {entity} {name!r} exists on the broker with another {argument} than the one asked for "
            f"({detail}). Make the setting match it, or use another name; how a {entity} is exchanged for another "
            "one without losing or reordering anything is in the operations guide. It was left untouched."
        )


class NotFoundError(SagapostError):
    """What an operator named (an event, a parked message, a task, a saga, an inbox) is not there."""


class ConflictError(SagapostError):
    """What an operator decided does not fit the state that the thing is in; somebody else may have been first."""


class PublishError(SagapostError):
    """`Outbox.publish` refused the event; nothing was written."""


class NotInTransactionError(PublishError):
    """Publish was called outside a transaction, where atomicity cannot be promised."""

    def __init__(self, *, handle: str, remedy: str) -> None:
        self.handle = handle
        super().__init__(
            f"publish() was called on {handle} with no transaction open, so the event could not be tied to "
            f"your change. {remedy}"
        )


class UnnamedEventError(PublishError):
    """The event's class has no event type."""

    def __init__(self, cls: type) -> None:
        self.cls = cls
        super().__init__(
            f"{cls.__module__}.{cls.__qualname__} has no event type. "
            f'Name it with @event("orders.{cls.__name__.lower()}.v1"), or pass type= to publish().'
        )


class EncodingError(PublishError):
    """The event cannot be serialised."""

    def __init__(self, *, event_type: str, cls: type, reason: str) -> None:
        self.event_type = event_type
        self.cls = cls
        self.reason = reason
        super().__init__(
            f"Event {event_type!r} ({cls.__module__}.{cls.__qualname__}) cannot be serialised: {reason}. "
            "Use a pydantic model, msgspec struct, dataclass, TypedDict, dict, or bytes of JSON-compatible values."
        )


class EventTooLargeError(PublishError):
    """The encoded event is larger than the configured limit."""

    def __init__(self, *, event_type: str, size: int, limit: int) -> None:
        self.event_type = event_type
        self.size = size
        self.limit = limit
        super().__init__(
            f"Event {event_type!r} is {size:,} bytes encoded; the limit is {limit:,}. "
            "Store the payload elsewhere and publish a reference, or raise the limit with Outbox(max_bytes=...)."
        )


class InvalidEventError(PublishError):
    """An attribute of the event breaks a rule."""

    def __init__(self, *, attribute: str, value: object, reason: str) -> None:
        self.attribute = attribute
        self.value = value
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}... ({len(shown)} characters)"
        super().__init__(f"Event attribute {attribute!r} is {shown}: {reason}")


class DecodingError(SagapostError):
    """A message cannot be read as the class the handler declared."""

    def __init__(self, *, event_id: str, event_type: str, cls: type, reason: str) -> None:
        self.event_id = event_id
        self.event_type = event_type
        self.cls = cls
        self.reason = reason
        super().__init__(
            f"Event {event_id} of type {event_type!r} cannot be read as {cls.__module__}.{cls.__qualname__}: {reason}"
        )


class SchemaError(SagapostError):
    """The database lacks sagapost's tables, has those of another version, or lacks what they cannot do without."""

    def __init__(self, *, found: int | None, expected: int, where: str, lacks: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.where = where
        self.lacks = lacks
        if lacks is not None:
            what = f"{where} lacks {lacks}"
        elif found is None:
            what = f"{where} has no sagapost tables"
        else:
            what = f"{where} has sagapost schema version {found}, this release needs {expected}"
        remedy = (
            "Upgrade the sagapost package on this host; the database is newer than it."
            if found is not None and found > expected
            else "Run `sagapost db upgrade` (or your own migration that creates them) and start again."
        )
        super().__init__(f"{what}. {remedy}")


class UpgradeBlockedError(SchemaError):
    """An upgrade could not change a table, since others held it locked all the time."""

    def __init__(self, *, part: str, what: str, attempts: int) -> None:
        self.part = part
        self.what = what
        self.attempts = attempts
        SagapostError.__init__(
            self,
            f"The upgrade of {part} stopped before this step: {what}. Other transactions held the table in each of "
            f"{attempts} attempts. What was done by then stays, and everything of the older release goes on. End the "
            "transactions that are open for long (pg_stat_activity), then run `sagapost db upgrade` again.",
        )


class HandlerError(SagapostError):
    """A handler broke its contract with the inbox; its transaction was rolled back."""


class BrokerError(SagapostError):
    """The broker failed a call."""


class BrokerUnavailableError(BrokerError):
    """The broker cannot be reached now, or the connection broke; a later attempt may succeed."""


class BrokerRefusedError(BrokerError):
    """The broker was reached and refused (credentials, permissions, virtual host); a person must act."""


class StoreError(SagapostError):
    """The database failed a call."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached now, or the connection broke; a later attempt may succeed."""


class StoreRefusedError(StoreError):
    """The database was reached and refused (credentials, permissions, no such database)."""


class LeaseLostError(StoreError):
    """A write was refused because its lease token no longer owns the partition."""

    def __init__(self, *, partitions: frozenset[int]) -> None:
        self.partitions = partitions
        super().__init__(
            f"The lease of partition(s) {sorted(partitions)} was lost before the write; another relay owns them now. "
            "Nothing is lost: the new owner publishes what was not settled."
        )
