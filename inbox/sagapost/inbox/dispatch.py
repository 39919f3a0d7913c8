"""From a delivery to what becomes of it: decode, decide, try, and either acknowledge or park."""

from __future__ import annotations

import traceback
from datetime import timedelta
from typing import assert_never

import anyio

from sagapost.core.broker import Delivery, Malformed
from sagapost.core.clock import Clock
from sagapost.core.observer import Observer
from sagapost.inbox import observations as obs
from sagapost.inbox.database import Database, Link, sqlstate_of
from sagapost.inbox.inbox import Inbox
from sagapost.inbox.keys import dedup_key, malformed_key
from sagapost.inbox.message import Arrival, Message, Unreadable
from sagapost.inbox.outcomes import (
    Behind,
    BusinessFailed,
    Duplicate,
    Failed,
    Handled,
    Outcome,
    ParkReason,
    Refused,
    Rejected,
    RetryLater,
    TooOld,
)
from sagapost.inbox.parking import Parked, ParkingLot
from sagapost.inbox.settings import ConsumerSettings, RetryPolicy
from sagapost.inbox.transaction import Transactions

__all__ = ["Dispatcher"]

_CONFLICT_TRIES = 5
"""Tries after deadlocks and serialisation failures that count as one: the message is not to blame."""


class Dispatcher:
    """Decides what is done with a message, and does it."""

    def __init__(
        self,
        inbox: Inbox,
        settings: ConsumerSettings,
        database: Database,
        lot: ParkingLot,
        transactions: Transactions,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self._inbox = inbox
        self._settings = settings
        self._database = database
        self._lot = lot
        self._transactions = transactions
        self._observer = observer
        self._clock = clock
        self._conflict_pause = RetryPolicy().quick_backoff
        self.clock_ahead = timedelta(0)
        """How far this host's clock is ahead of the database's."""

    # --- decode ---

    def read(self, delivery: Delivery) -> Arrival:
        """Read the envelope of a delivery."""
        content = delivery.content
        if isinstance(content, Malformed):
            return Unreadable(content, delivery.topic, delivery)
        calls = self._inbox.calls(content.type, delivery.topic)
        return Message(content, delivery.topic, dedup_key(content), calls, delivery)

    # --- handle ---

    async def handle(self, link: Link, arrival: Arrival) -> bool:
        """Bring a delivery to its end: committed as handled, as a duplicate, or as parked.

        Returns whether to acknowledge it; False: hand it to the broker's dead letters.

        :raises StoreUnavailableError: if the database went away; handle it again when it is back.
        """
        if isinstance(arrival, Unreadable):
            await self._park_unreadable(arrival)
            return True
        if not arrival.calls:
            return await self._unknown(arrival)
        outcome = self._too_old(arrival) or await self.attempt(link, arrival)
        parked = self.park_as(arrival, outcome)
        if parked is not None:
            # After a broken contract the dedup key may be committed by the very transaction that went wrong.
            await self.park(arrival, parked, unclaimed=parked.reason != "broke-contract")
        return True

    def _too_old(self, message: Message) -> TooOld | None:
        """Tell whether a message is from before the dedup window, by the database's clock."""
        if self._clock.now() - self.clock_ahead - message.event.time <= self._settings.retention:
            return None
        return TooOld(
            f"The event is from {message.event.time.isoformat()}, which is before the dedup window of "
            f"{self._settings.retention}: whether it was handled before is no longer known. Redrive it if it was not, "
            "else discard it."
        )

    async def attempt(self, link: Link, message: Message) -> Outcome:
        """Try a message: once, and again at once as often as its policy and the cause allow."""
        conflicts = tries = 0
        while True:
            tries += 1
            outcome = await self._transactions.run(link, message, attempt=message.attempts + tries)
            if not isinstance(outcome, Failed):
                return outcome
            self._observer.notify(
                obs.HandlerFailed(
                    self._inbox.name,
                    message.event.id,
                    message.event.type,
                    message.attempts + tries,
                    describe(outcome.error),
                )
            )
            if outcome.conflict and conflicts < _CONFLICT_TRIES:
                conflicts += 1
                tries -= 1
                pause = self._conflict_pause.seconds(conflicts)
            else:
                policy = self.policy(message, outcome.error)
                if policy is None or tries > policy.quick:
                    return outcome
                pause = policy.quick_backoff.seconds(tries)
            await link.give_back()
            await anyio.sleep(pause)

    def policy(self, message: Message, error: BaseException | None) -> RetryPolicy | None:
        """Return the retry policy for a failure of this message; None: no retry."""
        # All handlers of a message share its transaction and its fate; the first with a say decides.
        for call in message.calls:
            if error is None:
                return call.handler.retry if call.handler.retry is not None else self._settings.retry
            policy = call.handler.policy_for(error, self._settings.retry)
            if policy is not self._settings.retry:
                return policy
        return self._settings.retry

    # --- park ---

    def park_as(self, message: Message, outcome: Outcome) -> Parked | None:
        """Return how a message is to be parked after this outcome; None: it is done."""
        match outcome:
            case Handled() | Duplicate() | BusinessFailed():
                return None
            case Failed(error=error, conflict=conflict):
                policy = self.policy(message, error)
                detail = "".join(traceback.format_exception(error))
                reason: ParkReason = "conflict" if conflict else "failed"
                if policy is None:
                    sentence = (
                        f"The handler raised {type(error).__name__}, which is declared not to be retried: {error}"
                    )
                    return Parked("dead", "rejected", sentence, detail, message.attempts + 1)
                sentence = f"The handler raised {type(error).__name__}: {error}"
                if conflict:
                    sentence = (
                        f"The database undid the transaction {_CONFLICT_TRIES + 1} times in a row for the sake of "
                        f"another one (deadlock or serialisation failure): {error}"
                    )
                return self._waiting(message, policy, reason, sentence, detail, None)
            case RetryLater(after=after, reason=why):
                policy = self.policy(message, None) or self._settings.retry
                return self._waiting(message, policy, "retry", why, None, after)
            case Rejected(reason=why):
                return Parked("dead", "rejected", why, None, message.attempts + 1)
            case Refused(reason=refused, error=sentence, traceback=detail):
                return Parked("dead", refused, sentence, detail, message.attempts + 1)
            case TooOld(error=sentence):
                return Parked("dead", "too-old", sentence)
            case Behind():
                return Parked("behind", "behind", "An earlier message of its ordering key is parked.")
            case _:
                assert_never(outcome)

    def _waiting(
        self,
        message: Message,
        policy: RetryPolicy,
        reason: ParkReason,
        sentence: str,
        detail: str | None,
        after: timedelta | None,
    ) -> Parked:
        attempts = message.attempts + 1
        if attempts >= policy.attempts:
            return Parked("dead", reason, f"{sentence} (attempt {attempts} of {policy.attempts})", detail, attempts)
        delay = after if after is not None else policy.backoff.delay(attempts)
        return Parked("waiting", reason, sentence, detail, attempts, delay)

    async def park(self, message: Message, parked: Parked, *, unclaimed: bool = True) -> None:
        """Commit a message to the parked ones.

        :raises StoreUnavailableError: if the database went away.
        """
        event = message.event
        fresh = await self._database.run(
            lambda connection: self._lot.park(connection, message, parked, unclaimed=unclaimed)
        )
        if fresh:
            self._notify_parked(event.id, event.type, parked)
        else:
            self._observer.notify(obs.Duplicate(self._inbox.name, event.id, event.type))

    async def _park_unreadable(self, arrival: Unreadable) -> None:
        """Commit a message that is no event to the parked ones."""
        content, topic = arrival.content, arrival.topic
        parked = Parked("dead", "undecodable", f"The message is not an event: {content.reason}.")
        key = malformed_key(content)
        fresh = await self._database.run(
            lambda connection: self._lot.park_malformed(connection, content, key, topic, parked)
        )
        if fresh:
            self._notify_parked(content.message_id, content.type, parked)
        else:
            self._observer.notify(obs.Duplicate(self._inbox.name, content.message_id or "", content.type or ""))

    async def _unknown(self, message: Message) -> bool:
        """Do with an event that no handler takes what the inbox says."""
        event = message.event
        match self._inbox.unknown:
            case "ignore":
                self._observer.notify(obs.Ignored(self._inbox.name, event.id, event.type))
                return True
            case "reject":
                self._observer.notify(obs.Ignored(self._inbox.name, event.id, event.type))
                return False
            case "park":
                sentence = (
                    f"No handler of inbox {self._inbox.name!r} takes events of type {event.type!r}. Declare one and "
                    "redrive, or discard it."
                )
                await self.park(message, Parked("dead", "unknown-type", sentence))
                return True
            case _ as never:
                assert_never(never)

    def _notify_parked(self, event_id: str | None, event_type: str | None, parked: Parked) -> None:
        self._observer.notify(
            obs.Parked(
                self._inbox.name,
                event_id,
                event_type,
                parked.reason,
                parked.state,
                parked.attempts,
                None if parked.retry_in is None else parked.retry_in.total_seconds(),
            )
        )


def describe(error: BaseException) -> str:
    """Return what may be logged of an error: its kind, never its text, which may quote the message."""
    code = sqlstate_of(error)
    return f"{type(error).__name__} (SQLSTATE {code})" if code else type(error).__name__
