"""From a delivery, or a parked message whose time has come, to its end: handled, known already, or parked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, Protocol, assert_never

import anyio
from sqlalchemy import Connection

from sagapost.core.broker import Delivery, Malformed
from sagapost.core.envelope import Event
from sagapost.core.identity import KEY_BYTES, dedup_key
from sagapost.core.observer import Observer
from sagapost.inbox.arriving.keys import malformed_key, unit_key
from sagapost.inbox.arriving.message import Arrival, Message, Parking, Unreadable
from sagapost.inbox.arriving.settlement import Receipt, Settlement
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.declared.handlers import Unit
from sagapost.inbox.declared.outcomes import DoneBefore, Failed, Outcome, TooOld
from sagapost.inbox.declared.settings import ConsumerSettings, RetryPolicy
from sagapost.inbox.handling.faults import kind_of, text_of, traceback_of
from sagapost.inbox.handling.guarded import LostError
from sagapost.inbox.handling.last_resort import last_resort_of
from sagapost.inbox.handling.suspects import Suspects
from sagapost.inbox.handling.transaction import Toolbox, Transactions
from sagapost.inbox.handling.verdicts import killer, policy_for, undecodable, unhandled, verdict
from sagapost.inbox.kept.attempts import BegunAttempts
from sagapost.inbox.kept.database import Link
from sagapost.inbox.kept.parking import BEHIND, Due, ParkingDecision, ParkingLot
from sagapost.inbox.kept.screening import Screening
from sagapost.inbox.kept.versions import Versions

__all__ = ["Dispatcher", "ReadAgain"]

_CONFLICT_TRIES = 5
"""Tries after deadlocks and serialisation failures that count as one: the message is not to blame."""

_NOBODY = (Unit("", ()),)

_FOR_ANOTHER_VERSION = frozenset({"unknown-type", "unknown-name"})

Settle = Literal["ack", "refuse"]


class ReadAgain(Protocol):
    """How the broker reads what could not be read as an event (`Broker.read`)."""

    def __call__(self, message: Malformed, topic: str, *, received_at: datetime) -> Event | Malformed:
        """Return the event, or why there is still none."""
        ...


class Dispatcher:
    """Decides what is done with a message, and does it.

    Every method that speaks to the database raises StoreUnavailableError if it went away; nothing is counted then,
    and the same call with the same message is to be made again when it is back.
    """

    def __init__(
        self,
        tools: Toolbox,
        settings: ConsumerSettings,
        lot: ParkingLot,
        attempts: BegunAttempts,
        suspects: Suspects,
        screening: Screening,
        versions: Versions,
        read: ReadAgain,
    ) -> None:
        self._inbox = tools.inbox
        self._consumer = tools.inbox.name
        self._settings = settings
        self._database = tools.database
        self._lot = lot
        self._attempts = attempts
        self._screening = screening
        self._versions = versions
        self._read_again = read
        self._transactions = Transactions(tools)
        self._observer: Observer = tools.observer
        self._clock = tools.clock
        self._conflict_pause = RetryPolicy().quick_backoff
        self._suspects = suspects
        self.clock_ahead = timedelta(0)
        """How far this host's clock is ahead of the database's."""

    # --- decode ---

    def read(self, delivery: Delivery, settlement: Settlement) -> list[Arrival]:
        """Read the envelope of a delivery; return a message for each transaction that its handlers run in."""
        content, topic = delivery.content, delivery.topic
        if isinstance(content, Malformed):
            return [Unreadable(content, topic, malformed_key(content), Receipt(delivery, settlement))]
        units, key = self._inbox.units(content.type, topic) or _NOBODY, dedup_key(content)
        receipt = Receipt(delivery, settlement, messages=len(units))
        return [
            Message(
                content,
                topic,
                unit_key(key, unit.transaction),
                unit.calls,
                receipt,
                self._lane(content, unit.transaction),
            )
            for unit in units
        ]

    def _lane(self, event: Event, transaction: str) -> str | None:
        key = event.partitionkey if self._inbox.ordered else None
        return f"{key}\0{transaction}" if key and transaction else key

    def _unit(self, due: Due) -> Unit | None:
        """Return what is called for a parked message, by the key that it is parked under."""
        if isinstance(due.content, Malformed):
            return None
        for unit in self._inbox.units(due.content.type, due.topic):
            if due.key == unit_key(due.key[:KEY_BYTES], unit.transaction):
                return unit
        return None

    # --- a delivery ---

    async def handle(self, link: Link, arrival: Arrival) -> Settle:
        """Bring a delivery to its end; return what to tell the broker."""
        if isinstance(arrival, Unreadable):
            await self._park_unreadable(arrival)
            return "ack"
        if not arrival.calls:
            return await self._unknown(arrival)
        if not arrival.redelivered and not arrival.losses:
            await self._handle(link, arrival)
            return "ack"
        # One at a time, so that a killer, of the process or of the database's, is known from the rest.
        async with self._suspects.turn:
            if arrival.redelivered:
                await self._handle_suspect(link, arrival)
            else:
                await self._handle(link, arrival)
        return "ack"

    async def _handle(self, link: Link, message: Message) -> None:
        outcome = self.too_old(message) or await self._attempt(link, message)
        if isinstance(outcome, DoneBefore):
            self.found_duplicate()
        parked = await self._verdict(link, message, outcome)
        if parked is not None:
            await link.give_back()
            # After a broken contract the dedup key may be committed by the very transaction that went wrong.
            await self._park(message, parked, unclaimed=parked.reason != "broke-contract")
        elif message.recorded and isinstance(outcome, DoneBefore):
            await link.give_back()
            await self._suspects.clear([message])

    async def _handle_suspect(self, link: Link, message: Message) -> None:
        if not message.recorded:
            await link.give_back()
            unended = await self._suspects.begin(message)
            # The first time it was in flight is not on record: nothing made it suspect then.
            if unended + 2 > self._settings.max_crashes:
                await self._park(message, killer(unended + 1))
                return
        await self._handle(link, message)

    async def _verdict(self, link: Link, message: Message, outcome: Outcome) -> ParkingDecision | None:
        """Decide what becomes of a message, with its handlers' last resort before it is dead; None: it is done."""
        parked = self._parked(message, outcome)
        instead = last_resort_of(message, parked) if parked is not None else None
        if parked is None or instead is None or message.losses > self._settings.max_crashes:
            # The last resort may be what the connection is lost by, too.
            return parked
        conflicts = 0
        while True:
            outcome = await self._transactions.run(link, message, attempt=parked.attempts, instead=instead)
            if not isinstance(outcome, Failed):
                return self._parked(message, outcome)
            conflicts += 1
            if not outcome.conflict or conflicts >= _CONFLICT_TRIES:
                failure = text_of(outcome.error)
                return replace(parked, error=f"{parked.error} Its last resort failed too: {failure}")
            await link.give_back()
            await anyio.sleep(self._conflict_pause.seconds(conflicts))

    def _parked(self, message: Message, outcome: Outcome) -> ParkingDecision | None:
        settings = self._settings
        return verdict(message, outcome, settings.retry, now=self._now(), unknown_for=settings.unknown_for)

    def _now(self) -> datetime:
        """The time by the database's clock, as near as is known."""
        return self._clock.now() - self.clock_ahead

    def too_old(self, message: Message) -> TooOld | None:
        """Return whether a message is from before the dedup window, by the database's clock."""
        if self._now() - message.event.time <= self._settings.retention:
            return None
        return TooOld(
            f"The event is from {message.event.time.isoformat()}, which is before the dedup window of "
            f"{self._settings.retention}: whether it was handled before is no longer known. Redrive it if it was not, "
            "else discard it."
        )

    async def _attempt(self, link: Link, message: Message) -> Outcome:
        """Try a message: once, and again at once as often as its policy and the cause allow."""
        event = message.event
        if message.losses >= self._settings.max_crashes:
            poison = LostError(
                f"Its connection to the database was lost {message.losses} times in a row while it was handled, and "
                "new ones worked each time. Look into the server's log for what ends them (a crash, a limit on memory "
                "or on time), correct it, then redrive."
            )
            self._notify_failed(event, message.attempts + 1, poison)
            return Failed(poison)
        conflicts = tries = 0
        while True:
            tries += 1
            attempt = message.attempts + tries
            outcome = await self._transactions.run(link, message, attempt=attempt)
            if not isinstance(outcome, Failed):
                return outcome
            self._notify_failed(event, attempt, outcome.error)
            if outcome.conflict and conflicts < _CONFLICT_TRIES:
                conflicts += 1
                tries -= 1
                pause = self._conflict_pause.seconds(conflicts)
            else:
                policy = policy_for(message, outcome.error, self._settings.retry)
                if policy is None or tries > policy.quick:
                    return outcome
                pause = policy.quick_backoff.seconds(tries)
            await link.give_back()
            await anyio.sleep(pause)

    async def call_off(self, arrival: Arrival) -> None:
        """Take back what is on record about an attempt that was cancelled in order."""
        if not isinstance(arrival, Message):
            return
        place = arrival.parking
        if arrival.recorded:
            await self._suspects.withdraw(arrival)
        if place is not None:
            await self._database.run(lambda connection: self._lot.call_off(connection, [place]))

    # --- a parked message ---

    async def claim_due(self, *, limit: int, suspects: bool) -> list[Message]:
        """Claim parked messages that are due, and put those aside that nothing can be done with.

        :param suspects: whether one may be claimed that was in flight when a process died; it comes alone.
        """
        # The lease outlasts any transaction; it matters only if this process dies.
        lease = self._settings.handler_timeout + self._settings.database_timeout
        begin_by = anyio.current_time() + self._settings.database_timeout.total_seconds()
        due = await self._database.run(
            lambda connection: self._lot.claim_due(
                connection, limit=limit, lease=lease, suspects=suspects, train=self._settings.batch or 1
            )
        )
        if due:
            self._observer.notify(obs.RoundClaimed(self._consumer, len(due)))
        messages: list[Message] = []
        for claimed in due:
            item = await self._readable(claimed)
            if item is None:
                continue
            unit = self._unit(item)
            unfit = await self._unfit(item, unit)
            if unfit is not None:
                await self._park_again(item.place, item.content, unfit)
                if not unfit.in_line and isinstance(item.content, Event) and item.content.partitionkey is not None:
                    await self.promote([item.content.partitionkey])
                continue
            if not isinstance(item.content, Malformed) and unit is not None:
                lane, suspect = self._lane(item.content, unit.transaction), item.crashes > 0
                message = Message(item.content, item.topic, item.key, unit.calls, None, lane, item.place)
                message.suspect = suspect
                message.attempts, message.begin_by, message.since = item.attempts, begin_by, item.since
                messages.append(message)
        return messages

    async def _readable(self, due: Due) -> Due | None:
        """Read a message again that was no event; None: nothing is left to do with it.

        The settings may be other ones than when it was parked, or an operator has added what it lacked. What is an
        event now has the identity of one, under which it may have been handled.
        """
        if not isinstance(due.content, Malformed):
            return due
        content = self._read_again(due.content, due.topic, received_at=due.since)
        if isinstance(content, Malformed):
            return replace(due, content=content)
        own, units = dedup_key(content), self._inbox.units(content.type, due.topic) or _NOBODY
        keys = [unit_key(own, unit.transaction) for unit in units]
        key = await self._database.run(
            lambda connection: self._lot.read_anew(connection, due.place, content, keys, due.topic)
        )
        if key is None:
            self.found_duplicate()
            self._observer.notify(obs.Duplicate(self._consumer, content.id, content.type))
            return None
        return replace(due, content=content, key=key)

    async def _unfit(self, due: Due, unit: Unit | None) -> ParkingDecision | None:
        """Return how a due message is parked that cannot be tried; None: it can."""
        if isinstance(due.content, Malformed):
            return undecodable(due.content)
        if due.crashes >= self._settings.max_crashes:
            return killer(due.crashes, due.attempts)
        if unit is None:
            waited = self._now() - due.since
            return await self._unhandled(due.content.type, due.attempts, waited, apart=len(due.key) > KEY_BYTES)
        return None

    async def _unhandled(
        self, type_: str, attempts: int, waited: timedelta, *, apart: bool = False
    ) -> ParkingDecision:
        removed = await self._database.run(lambda connection: self._versions.was_removed(connection, type_))
        unknown_for = self._settings.unknown_for
        return unhandled(
            self._consumer,
            type_,
            attempts=attempts,
            waited=waited,
            unknown_for=unknown_for,
            removed=removed,
            apart=apart,
        )

    async def announce(self) -> None:
        """Say what this version takes, and let go what has waited for it."""

        def announce(connection: Connection) -> None:
            self._versions.announce(connection)
            self._lot.hurry(connection, self._versions.takes)

        await self._database.run(announce)

    async def handle_parked(self, link: Link, message: Message) -> None:
        """Bring the round of a parked message to its end."""
        place, key = message.parking, message.order
        if place is None:
            raise ValueError("the message is not parked")
        if anyio.current_time() > message.begin_by:
            # It came behind others that took long. Claimed by somebody else meanwhile, it would count as a crash.
            await link.give_back()
            await self._database.run(lambda connection: self._lot.stand_back(connection, place))
            if key is not None:
                await self.promote([key])
            return
        if message.losses:
            async with self._suspects.turn:
                outcome = await self._attempt(link, message)
        else:
            outcome = await self._attempt(link, message)
        parked = await self._verdict(link, message, outcome)
        await link.give_back()
        if parked is not None and parked.state == "behind":
            await self._database.run(lambda connection: self._lot.call_off(connection, [place], behind=True))
        elif parked is not None:
            held = await self._park_again(place, message.event, parked)
            if not held and parked.reason == "broke-contract":
                # The handler has committed that the message was taken out.
                await self._park(message, parked, unclaimed=False)
        if key is not None and not isinstance(outcome, DoneBefore):
            await self.promote([key])

    # --- park ---

    async def _park(self, message: Message, parked: ParkingDecision, *, unclaimed: bool = True) -> None:
        event = message.event

        def park(connection: Connection) -> ParkingDecision | None:
            if message.recorded:
                self._attempts.clear(connection, message.key)
            return self._lot.park(connection, message, parked, unclaimed=unclaimed)

        done = await self._database.run(park)
        if done is None:
            self.found_duplicate()
            self._observer.notify(obs.Duplicate(self._consumer, event.id, event.type))
            return
        self._notify_parked(event.id, event.type, done)
        if done.state == "behind" and message.order is not None:
            # What it waits for may have gone between the look and the commit.
            await self.promote([message.order])

    async def park_broken(self, message: Message, parked: ParkingDecision) -> None:
        """Park a message, delivered or parked before, whose claim may be committed although it was not handled."""
        await self._park(message, parked, unclaimed=False)

    def parked_behind(self, messages: Sequence[Message]) -> None:
        """Report messages that were parked in a group's transaction."""
        for message in messages:
            self._notify_parked(message.event.id, message.event.type, BEHIND)

    async def _park_again(self, place: Parking, content: Malformed | object, parked: ParkingDecision) -> bool:
        held = await self._database.run(lambda connection: self._lot.park_again(connection, place, parked))
        # What still waits for another version was reported when it began to.
        if held and not (parked.state == "waiting" and parked.reason in _FOR_ANOTHER_VERSION):
            id_ = content.message_id if isinstance(content, Malformed) else getattr(content, "id", None)
            self._notify_parked(id_, getattr(content, "type", None), parked)
        return held

    async def _park_unreadable(self, arrival: Unreadable) -> None:
        content, topic, key = arrival.content, arrival.topic, arrival.key
        parked = undecodable(content)
        fresh = await self._database.run(
            lambda connection: self._lot.park_malformed(connection, content, key, topic, parked)
        )
        if fresh:
            self._notify_parked(content.message_id, content.type, parked)
        else:
            self._observer.notify(obs.Duplicate(self._consumer, content.message_id or "", content.type or ""))

    async def _unknown(self, message: Message) -> Settle:
        """Do with an event that no handler takes what the inbox says."""
        event = message.event
        match self._inbox.unknown:
            case "ignore":
                self._observer.notify(obs.Ignored(self._consumer, event.id, event.type))
                return "ack"
            case "reject":
                self._observer.notify(obs.Ignored(self._consumer, event.id, event.type))
                return "refuse"
            case "park":
                await self._park(message, await self._unhandled(event.type, 0, timedelta(0)))
                return "ack"
            case _ as never:
                assert_never(never)

    async def promote(self, keys: Collection[str]) -> None:
        """Let the first parked message of each ordering key go, if it waits behind nothing any more."""
        promoted = await self._database.run(lambda connection: self._lot.order.promote(connection, keys))
        if promoted:
            self._observer.notify(obs.Promoted(self._consumer, promoted))

    async def promote_all(self) -> None:
        """Promote whatever a crash kept from being promoted."""
        promoted = await self._database.run(self._lot.order.promote_all)
        if promoted:
            self._observer.notify(obs.Promoted(self._consumer, promoted))

    def _notify_failed(self, event: Event, attempt: int, error: BaseException) -> None:
        detail = traceback_of(error)
        self._observer.notify(
            obs.HandlerFailed(self._consumer, event.id, event.type, attempt, kind_of(error), text_of(error), detail)
        )

    def _notify_parked(self, event_id: str | None, event_type: str | None, parked: ParkingDecision) -> None:
        self._observer.notify(
            obs.Parked(
                self._consumer,
                event_id,
                event_type,
                parked.reason,
                parked.state,
                parked.attempts,
                None if parked.retry_in is None else parked.retry_in.total_seconds(),
            )
        )

    def found_duplicate(self) -> None:
        """Take note that duplicates are about."""
        self._screening.found_duplicate()
