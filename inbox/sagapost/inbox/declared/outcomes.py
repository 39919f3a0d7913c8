"""How the handling of a message ends: what a handler can raise, and the small sum type the consumer decides by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, Unpack

from sagapost.core.errors import ConfigurationError
from sagapost.outbox import PublishOptions

if TYPE_CHECKING:
    from sagapost.inbox.declared.context import Context

__all__ = [
    "AskedFor",
    "Behind",
    "BusinessFailure",
    "DoneBefore",
    "Exhausted",
    "Failed",
    "Done",
    "Instead",
    "LastResort",
    "NotKnown",
    "Outcome",
    "ParkReason",
    "Unprocessable",
    "Reject",
    "Retry",
    "Snooze",
    "TooOld",
]


_LONGEST = timedelta(days=3653)
_LAST_YEAR = 9000
"""From here on a time may have no form in some timezone, or in a database."""


def _require_wait(what: str, after: timedelta | None) -> None:
    if after is not None and not timedelta(0) <= after <= _LONGEST:
        raise ConfigurationError(f"{what}(after=) is a time to wait, 0 to {_LONGEST.days} days, not {after}.")


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
    :raises ConfigurationError: if `after` is negative, or over ten years.
    """

    # For classes derived from it whose constructor does not call this one.
    after: timedelta | None = None
    reason: str = "the handler asked for a retry"

    def __init__(self, after: timedelta | None = None, *, reason: str = "the handler asked for a retry") -> None:
        _require_wait("Retry", after)
        self.after = after
        self.reason = reason
        super().__init__(reason)


class Reject(Exception):  # noqa: N818 an instruction, not an error
    """Never: undo what the handler did and park the message as a dead letter with this reason; no retry."""

    reason: str = "the handler gave no reason"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Snooze(Exception):  # noqa: N818 an instruction, not an error
    """Not before a time: undo what the handler did and handle the message again then.

    Nothing has failed, so it counts as no attempt, however often it happens. Take `Retry` for what must end some day.

    :param until: the time, timezone-aware; one that has passed means at once.
    :param after: or how long to wait from now.
    :param reason: shown to operators.
    :raises ConfigurationError: unless exactly one of the two is given, and makes sense.
    """

    until: datetime | None = None
    after: timedelta | None = timedelta(0)
    reason: str = "the handler waits for a time"

    def __init__(
        self,
        *,
        until: datetime | None = None,
        after: timedelta | None = None,
        reason: str = "the handler waits for a time",
    ) -> None:
        if (until is None) == (after is None):
            raise ConfigurationError("Snooze() takes either until= or after=.")
        if until is not None and until.tzinfo is None:
            raise ConfigurationError(f"Snooze(until={until}) has no timezone. Make it aware, e.g. with tzinfo=UTC.")
        _require_wait("Snooze", after)
        if until is not None and until.year >= _LAST_YEAR:
            raise ConfigurationError(f"Snooze(until={until}) is too far away; use a time before {_LAST_YEAR}.")
        self.until = until
        self.after = after
        self.reason = reason
        super().__init__(reason)


class Instead(Exception):  # noqa: N818 an instruction, not an error
    """Undo what the handler did, and do something else in its place: the message counts as handled with that.

    :param work: an ``async def work(ctx)``; what it writes and publishes is committed with the dedup key.
    :param reason: for logs.
    """

    def __init__(self, work: Callable[[Context], Awaitable[None]], *, reason: str) -> None:
        self.work = work
        self.reason = reason
        super().__init__(reason)


class NotKnown(Exception):  # noqa: N818 an instruction, not an error
    """This version of the service does not know what the message is about: wait for one that does.

    Undoes what the handler did; counts as no attempt, and ends after `ConsumerSettings.unknown_for` in a dead letter.
    For what was recorded under a name that another version has, not for what no version will ever know.

    :param reason: names it, and says what to deploy; shown to operators.
    """

    reason: str = "the handler does not know what the message is about"

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


AskedFor: TypeAlias = Retry | Snooze | NotKnown | Reject
"""What a handler raises to have something done with the message in place of what it did: itself an `Outcome`.

`Instead` and `BusinessFailure` are not among them: they say what else is to be committed, and come to `Done` with it.
"""


# --- what is called when the tries are used up ---


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Why a message would become a dead letter now."""

    reason: ParkReason
    error: str
    """In a sentence; it may quote data."""
    attempts: int


LastResort: TypeAlias = Callable[..., Awaitable[None]]
"""``async def last_resort(event, ctx, exhausted)``: what is done in place of making a message a dead letter."""


# --- what a delivery comes to ---

ParkReason: TypeAlias = Literal[
    "failed", "retry", "conflict", "rejected", "undecodable", "unknown-type", "unknown-name", "too-old",
    "killed-process", "behind", "broke-contract", "snoozed", "redo",
]  # fmt: skip
"""Why a message is parked; the parked row's `error` says it in a sentence."""


@dataclass(frozen=True, slots=True)
class Done:
    """Committed: what the handlers wrote and published, what was done instead, or the event of a business failure."""


@dataclass(frozen=True, slots=True)
class DoneBefore:
    """Handled before: nothing was done now."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The handler raised, timed out, or its transaction could not be written; its changes are undone."""

    error: BaseException
    conflict: bool = False
    """The database chose it as the victim of a deadlock or a serialisation conflict: trying again at once may do."""


@dataclass(frozen=True, slots=True)
class Unprocessable:
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


Outcome: TypeAlias = AskedFor | Done | DoneBefore | Failed | Unprocessable | TooOld | Behind
"""How the handling of a message ended; `handling.verdicts` says what becomes of the message then."""
