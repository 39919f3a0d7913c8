"""What becomes of a message by how its handling ended: done, parked for another round, or parked for a person."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import assert_never

from sagapost.core.backoff import wait_for_another_version
from sagapost.core.broker import Malformed
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.handlers import Call
from sagapost.inbox.declared.outcomes import (
    Behind,
    Done,
    DoneBefore,
    Failed,
    NotKnown,
    Outcome,
    ParkReason,
    Reject,
    Retry,
    Snooze,
    TooOld,
    Unprocessable,
)
from sagapost.inbox.declared.settings import RetryPolicy
from sagapost.inbox.handling.faults import clean, text_of, traceback_of
from sagapost.inbox.handling.guarded import GuardError
from sagapost.inbox.kept.parking import BEHIND, ParkingDecision

__all__ = [
    "at_fault",
    "broke_contract",
    "in_group",
    "killer",
    "not_begun",
    "policy_for",
    "undecodable",
    "unhandled",
    "verdict",
]


def policy_for(message: Message, error: BaseException | None, default: RetryPolicy) -> RetryPolicy | None:
    """Return the retry policy for a failure of this message; None: it is declared not to be retried.

    The handler that failed decides. What fails at the end of the transaction of several is nobody's: the default.
    """
    call = at_fault(message)
    if call is None:
        return default
    return (call.handler.retry or default) if error is None else call.handler.policy_for(error, default)


def at_fault(message: Message) -> Call | None:
    """Return what the last try of a message failed in; None: the transaction of several handlers did, at its end."""
    return message.calls[0] if len(message.calls) == 1 else message.failing


def verdict(
    message: Message, outcome: Outcome, default: RetryPolicy, *, now: datetime, unknown_for: timedelta
) -> ParkingDecision | None:
    """Return how the message is to be parked; None: it is done.

    :param now: by the database's clock; times of day in schedules are reckoned from it.
    :param unknown_for: see `ConsumerSettings`.
    """
    match outcome:
        case Done() | DoneBefore():
            return None
        case Failed():
            return _failed(message, outcome, default, now)
        case Retry(after=after, reason=reason):
            policy = policy_for(message, None, default) or default
            return _another_round(message, policy, "retry", clean(reason), None, after, now)
        case Snooze(until=until, after=after, reason=reason):
            # Nothing failed: the count of attempts stays as it was.
            wait = after if until is None else max(until - now, timedelta(0))
            return ParkingDecision("waiting", "snoozed", clean(reason), None, message.attempts, wait)
        case NotKnown(reason=reason):
            waited = timedelta(0) if message.since is None else now - message.since
            return _for_another_version("unknown-name", clean(reason), message.attempts, waited, unknown_for)
        case Reject(reason=reason):
            return ParkingDecision("dead", "rejected", clean(reason), None, message.attempts + 1)
        case Unprocessable(reason=category, error=sentence, traceback=detail):
            return ParkingDecision("dead", category, sentence, detail, message.attempts + 1)
        case TooOld(error=sentence):
            # Most likely done long ago, or its publisher's clock is wrong: no later message waits for it.
            return ParkingDecision("dead", "too-old", sentence, in_line=False)
        case Behind():
            return BEHIND
        case _:
            assert_never(outcome)


def undecodable(content: Malformed) -> ParkingDecision:
    """Return how a message is parked that is no event."""
    return ParkingDecision("dead", "undecodable", f"The message is not an event: {content.reason}.")


def unhandled(
    consumer: str,
    event_type: str,
    *,
    attempts: int,
    waited: timedelta,
    unknown_for: timedelta,
    removed: bool,
    apart: bool,
) -> ParkingDecision:
    """Return how an event is parked that no handler of this version takes.

    It keeps its place in the order of its key while a version that takes it may be on its way. If older versions took
    it and this one does not, or once it is a dead letter, nothing waits for it.

    :param apart: it was for handlers with a transaction of their own.
    """
    how = " in a transaction of their own of the name that it was parked for" if apart else ""
    sentence = (
        f"No handler of inbox {consumer!r} in this version takes events of type {event_type!r}{how}. Deploy one "
        f"that does, or redrive it then; or discard it, and remove the queue's binding."
    )
    parked = _for_another_version("unknown-type", sentence, attempts, waited, unknown_for)
    return replace(parked, in_line=parked.state == "waiting" and not removed)


def _for_another_version(
    reason: ParkReason, sentence: str, attempts: int, waited: timedelta, unknown_for: timedelta
) -> ParkingDecision:
    """Return how a message is parked that waits for a version that knows it: nothing has failed."""
    again = wait_for_another_version(waited, longest=unknown_for)
    if again is None:
        return ParkingDecision("dead", reason, sentence, attempts=attempts)
    return ParkingDecision("waiting", reason, sentence, attempts=attempts, retry_in=again)


def killer(crashes: int, attempts: int = 0) -> ParkingDecision:
    """Return how a message is parked that was in flight so often when the process died."""
    return ParkingDecision(
        "dead",
        "killed-process",
        f"The process died {crashes} times while this message was being handled, so it is not tried again. Find "
        "out why (memory, a native library, a hard exit), correct it, then redrive.",
        attempts=attempts,
    )


def broke_contract(message: Message, error: Exception) -> ParkingDecision:
    """Return how a message is parked whose handler ended a transaction that it shared with others."""
    return ParkingDecision("dead", "broke-contract", text_of(error), attempts=message.attempts + 1)


def in_group(error: Exception) -> ParkingDecision:
    """Return how a message is parked whose handler shared a transaction with one that ended it."""
    return ParkingDecision("dead", "broke-contract", f"In a group commit: {clean(error)}", attempts=1)


def not_begun(message: Message, error: Exception) -> ParkingDecision:
    """Return how a message is parked that was claimed in such a transaction and not handled: it is due at once."""
    sentence = f"It was not handled yet when another of its group commit broke off: {clean(error)}"
    return ParkingDecision("waiting", "failed", sentence, attempts=message.attempts, retry_in=timedelta(0))


def _failed(message: Message, outcome: Failed, default: RetryPolicy, now: datetime) -> ParkingDecision:
    error = outcome.error
    policy = policy_for(message, error, default)
    detail = traceback_of(error)
    text = text_of(error)
    if policy is None:
        sentence = f"The handler raised an error that it declares not to be retried: {text}"
        return ParkingDecision("dead", "rejected", sentence, detail, message.attempts + 1)
    if outcome.conflict:
        sentence = (
            "The database undid the transaction each time it was tried, for the sake of another one "
            f"(deadlock or serialisation failure): {text}"
        )
        return _another_round(message, policy, "conflict", sentence, detail, None, now)
    sentence = clean(error) if isinstance(error, GuardError) else f"The handler raised {text}"
    return _another_round(message, policy, "failed", sentence, detail, None, now)


def _another_round(
    message: Message,
    policy: RetryPolicy,
    reason: ParkReason,
    sentence: str,
    detail: str | None,
    after: timedelta | None,
    now: datetime,
) -> ParkingDecision:
    attempts = message.attempts + 1
    if attempts >= policy.rounds:
        return ParkingDecision("dead", reason, f"{sentence} (round {attempts} of {policy.rounds})", detail, attempts)
    delay = after if after is not None else policy.delay(attempts, now)
    return ParkingDecision("waiting", reason, sentence, detail, attempts, delay)
