"""How the handling of a message ends: what a handler can raise, and the small sum type the consumer decides by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias, Unpack

from sagapost.core.errors import ConfigurationError
from sagapost.outbox import PublishOptions

__all__ = [
    "Behind",
    "BusinessFailed",
    "BusinessFailure",
    "Duplicate",
    "Failed",
    "Handled",
    "Outcome",
    "ParkReason",
    "Refused",
    "Reject",
    "Rejected",
    "Retry",
    "RetryLater",
    "TooOld",
]


# --- raised by handlers ---


class BusinessFailure(Exception):  # noqa: N818 a decision of the business, not an error
    """The step cannot be done, for a reason of the business: publish `event` in place of what the handler did.

    Nothing the handler did remains; the failure event is published, the message counts as handled and is never
    retried. Its key is by default the ordering key of the message.

    :param event: the failure event, as for `Outbox.publish`.
    :param options: as for `Outbox.publish`.
    """

    def __init__(self, event: object, **options: Unpack[PublishOptions]) -> None:
        self.event = event
        self.options = options
        super().__init__(f"business failure {type(event).__name__}")


class Retry(Exception):  # noqa: N818 an instruction, not an error
    """Not now: undo what the handler did and handle the message again later.

    Counts as an attempt, and ends in a dead letter when the handler's `RetryPolicy.attempts` are used up.

    :param after: wait at least this long; default: what the handler's policy says.
    :param reason: shown to operators.
    :raises ConfigurationError: if `after` is negative.
    """

    def __init__(self, after: timedelta | None = None, *, reason: str = "the handler asked for a retry") -> None:
        if after is not None and after < timedelta(0):
            raise ConfigurationError(f"Retry(after=) is a time to wait, not {after}.")
        self.after = after
        self.reason = reason
        super().__init__(reason)


class Reject(Exception):  # noqa: N818 an instruction, not an error
    """Never: undo what the handler did and park the message as a dead letter with this reason; no retry."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


# --- what a delivery comes to ---

ParkReason: TypeAlias = Literal[
    "failed", "retry", "conflict", "rejected", "undecodable", "unknown-type", "too-old", "killed-process", "behind",
    "broke-contract",
]  # fmt: skip
"""Why a message is parked; the parked row's `error` says it in a sentence."""


@dataclass(frozen=True, slots=True)
class Handled:
    """Handled and committed, with everything the handlers wrote and published."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Handled before: nothing was done now."""


@dataclass(frozen=True, slots=True)
class BusinessFailed:
    """The handler raised `BusinessFailure`; its changes are undone and the failure event is committed."""

    event_type: str


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The handler raised `Retry`; its changes are undone."""

    after: timedelta | None
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The handler raised `Reject`; its changes are undone."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, timed out, or its transaction could not be written; its changes are undone."""

    error: BaseException
    conflict: bool = False
    """The database chose it as the victim of a deadlock or a serialisation conflict: trying again at once may do."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The message can never be handled as it is: undecodable, of unknown type, or its handler broke its contract."""

    reason: ParkReason
    error: str
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class TooOld:
    """Older than the dedup window: whether it was handled before is forgotten, so a person decides."""

    error: str


@dataclass(frozen=True, slots=True)
class Behind:
    """An earlier message of its ordering key is parked, so it must wait behind it."""


Outcome: TypeAlias = Handled | Duplicate | BusinessFailed | RetryLater | Rejected | Failed | Refused | TooOld | Behind
