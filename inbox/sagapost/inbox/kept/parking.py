"""Parking: what cannot be handled now is kept in a table, with the reason, and acknowledged to the broker.

So a retry needs no topology of the broker's, survives every restart, and can be seen and decided upon by a person.

In an ordered inbox later messages of a key park behind the first; see `parked_order`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, and_, case, delete, null, or_, select, update

from sagapost.core.broker import Malformed
from sagapost.core.databases import Moments, aware
from sagapost.core.envelope import Event
from sagapost.inbox.arriving.message import Message, Parking
from sagapost.inbox.declared.outcomes import ParkReason
from sagapost.inbox.declared.tables import InboxTables
from sagapost.inbox.kept.dedup import Dedup
from sagapost.inbox.kept.envelope import envelope_of, restore, shown, shown_columns
from sagapost.inbox.kept.parked_order import ORDERED, WAITING, ParkedOrder

__all__ = ["BEHIND", "Due", "ParkingDecision", "ParkingLot", "State"]

State = Literal["waiting", "behind", "dead"]


@dataclass(frozen=True, slots=True)
class ParkingDecision:
    """Why and until when a message is parked."""

    state: State
    reason: ParkReason
    error: str
    traceback: str | None = None
    attempts: int = 0
    retry_in: timedelta | None = None
    """Set if, and only if, the state is `waiting`."""
    in_line: bool = True
    """Whether later messages of its ordering key wait for it, in an ordered inbox."""


_READ_ANEW = "The message could not be read as an event before, and was read again."

BEHIND = ParkingDecision("behind", "behind", "An earlier message of its ordering key is parked.")
"""How what must wait for a parked message is parked."""


@dataclass(frozen=True, slots=True)
class Due:
    """A parked message whose time has come, claimed for one round."""

    place: Parking
    key: bytes
    topic: str
    content: Event | Malformed
    attempts: int
    crashes: int
    since: datetime
    """When it was parked, by the database's clock."""


class ParkingLot:
    """The parked messages of one consumer; every method runs in the caller's transaction."""

    def __init__(
        self,
        tables: InboxTables,
        dedup: Dedup,
        moments: Moments,
        order: ParkedOrder,
        *,
        consumer: int,
        ordered: bool,
    ) -> None:
        self.order = order
        self._table = tables.parked
        self._dedup = dedup
        self._moments = moments
        self._consumer = consumer
        self._ordered = ordered
        self._insert = moments.kit.insert_once(tables.parked)

    # --- in ---

    def park(
        self, connection: Connection, message: Message, parked: ParkingDecision, *, unclaimed: bool = True
    ) -> ParkingDecision | None:
        """Park a delivered message under its dedup key; None if it was handled or parked before.

        Returns how it was parked: an earlier message of its key may have been parked, or removed, since that was
        decided. `unclaimed=False`: park it even if its dedup key is there, because the transaction that wrote the key
        is the problem.
        """
        fresh = self._dedup.claim(connection, message.key)
        if not fresh and unclaimed:
            return None
        key = message.order
        if key is None:
            parked = replace(parked, in_line=parked.in_line and message.lane is None)
        elif parked.state != "dead" and parked.in_line:
            if self.order.is_blocked(connection, key):
                parked = replace(parked, state="behind", retry_in=None)
            elif parked.state == "behind":
                parked = replace(parked, state="waiting", retry_in=timedelta(0))
        added = self._add(connection, message.event, message.key, message.topic, parked)
        return parked if added else None

    def park_behind(self, connection: Connection, messages: Sequence[Message]) -> None:
        """Park delivered messages whose dedup keys the open transaction has written, in this order."""
        values = [self._values(message.event, message.key, message.topic, BEHIND) for message in messages]
        connection.execute(self._insert, values)

    def park_malformed(
        self, connection: Connection, content: Malformed, key: bytes, topic: str, parked: ParkingDecision
    ) -> bool:
        """Park a message that is no event; False if it is parked already."""
        return self._add(connection, content, key, topic, parked)

    def park_anew(
        self, connection: Connection, event: Event, key: bytes, topic: str, *, why: str, at: ColumnElement[datetime]
    ) -> bool:
        """Park an event that was handled, to be handled again from `at`; False if it is parked already."""
        return self._add(connection, event, key, topic, ParkingDecision("waiting", "redo", why), at=at)

    def read_anew(
        self, connection: Connection, place: Parking, event: Event, keys: Sequence[bytes], topic: str
    ) -> bytes | None:
        """Make a claimed message that was no event the event it is now read as; return the key that it has then.

        It goes on its own, since later events of its ordering key may have been handled meanwhile; what is parked
        before it still goes first. For each further transaction of handlers it is parked once more, due at once. Keys
        that are there already were handled under this identity: with nothing left to do the row goes, and None is
        returned; also if somebody else has claimed it meanwhile.

        :param keys: of the event, one for each transaction of handlers.
        """
        columns = self._table.c
        if connection.execute(select(columns.id).where(*self._mine(place)).with_for_update()).first() is None:
            return None
        fresh = [key for key in keys if self._dedup.claim(connection, key)]
        if not fresh:
            self.take_out(connection, [place])
            return None
        read = {"envelope": envelope_of(event), **shown_columns(event)}
        connection.execute(update(self._table).where(*self._mine(place)).values(key=fresh[0], ordered=0, **read))
        again = ParkingDecision("waiting", "undecodable", _READ_ANEW, retry_in=timedelta(0), in_line=False)
        for key in fresh[1:]:
            self._add(connection, event, key, topic, again)
        return fresh[0]

    def park_again(self, connection: Connection, place: Parking, parked: ParkingDecision) -> bool:
        """Record how a round ended; False if somebody else has claimed or removed the message meanwhile."""
        waiting = parked.state == "waiting"
        columns = self._table.c
        statement = (
            update(self._table)
            .where(*self._mine(place))
            .values(
                state=parked.state,
                reason=parked.reason,
                error=shown(parked.error),
                traceback=shown(parked.traceback),
                attempts=parked.attempts,
                claimed=0,
                next_attempt_at=self._moments.after(parked.retry_in or timedelta(0)) if waiting else None,
                ordered=columns.ordered if parked.in_line else 0,
            )
        )
        return connection.execute(statement).rowcount == 1

    def hurry(self, connection: Connection, types: Collection[str]) -> int:
        """Make due what has waited for a version that knows it, now that one has started; return how many."""
        columns = self._table.c
        known = and_(columns.reason == "unknown-type", columns.type.in_(types))
        statement = (
            update(self._table)
            .where(
                columns.consumer == self._consumer,
                columns.state == WAITING,
                columns.claimed == 0,
                or_(columns.reason == "unknown-name", known),
            )
            .values(next_attempt_at=self._moments.now())
        )
        return connection.execute(statement).rowcount

    # --- out ---

    def claim_due(
        self, connection: Connection, *, limit: int, lease: timedelta, suspects: bool, train: int = 1
    ) -> list[Due]:
        """Claim messages that are due, oldest due first, each for one round of at most `lease`.

        A message that was in flight when a process died comes alone, so that a poison message is found; and
        only if `suspects` are asked for, because nothing else is in flight. Then it comes before all others; else they
        do not wait for it.

        :param train: with messages that have not failed yet, some of those behind them: so many for each,
            counting itself. Let go one by one, those of a key in demand would be fewer than those that park meanwhile.
        """
        columns = self._table.c
        marks = columns.crashes + columns.claimed
        due = self._due(connection, marks > 0, limit=1) if suspects else []
        if not due:
            due = self._due(connection, marks == 0, limit=limit)
        if not due:
            return []
        chosen = [row.id for row in due]
        # One that has failed before may well fail again: it goes on its own.
        heads = [row.partitionkey for row in due if row.ordered and not (row.attempts or row.crashes or row.claimed)]
        if train > 1 and heads:
            chosen += self.order.followers(connection, heads, (train - 1) * len(heads))
        connection.execute(
            update(self._table)
            .where(columns.id.in_(chosen))
            .values(
                crashes=columns.crashes + columns.claimed,
                claimed=1,
                state=WAITING,
                token=columns.token + 1,
                next_attempt_at=self._moments.after(lease),
            )
        )
        rows = connection.execute(select(self._table).where(columns.id.in_(chosen)).order_by(columns.id))
        return [
            Due(
                Parking(row.id, row.token),
                row.key,
                row.topic,
                restore(row.envelope, row.data),
                row.attempts,
                row.crashes,
                aware(row.parked_at),
            )
            for row in rows
        ]

    def take_out(self, connection: Connection, places: Collection[Parking]) -> set[int]:
        """Remove messages whose round is being run; return the ids of those that are still this process's."""
        columns = self._table.c
        mine = or_(*(and_(*self._mine(place)) for place in places))
        return set(connection.execute(delete(self._table).where(mine).returning(columns.id)).scalars())

    def call_off(self, connection: Connection, places: Sequence[Parking], *, behind: bool = False) -> None:
        """Give claims back whose round was not run: due at once, nothing counted."""
        columns = self._table.c
        for place in places:
            connection.execute(
                update(self._table)
                .where(*self._mine(place))
                .values(
                    claimed=0,
                    # What was parked out of order (see `redo`) waits in order from now on.
                    ordered=1 if behind else columns.ordered,
                    state="behind" if behind else "waiting",
                    next_attempt_at=None if behind else self._moments.now(),
                )
            )

    def stand_back(self, connection: Connection, place: Parking) -> None:
        """Give a claim back that may lapse before its round ends. What was parked in order stands in line again.

        Left due, what is not the first of its key would be claimed in place of the first of others.
        """
        columns = self._table.c
        in_line = and_(columns.ordered == ORDERED, columns.partitionkey.is_not(None))
        connection.execute(
            update(self._table)
            .where(*self._mine(place))
            .values(
                claimed=0,
                state=case((in_line, "behind"), else_="waiting"),
                next_attempt_at=case((in_line, null()), else_=self._moments.now()),
            )
        )

    # --- inside ---

    def _due(self, connection: Connection, which: ColumnElement[bool], *, limit: int) -> Sequence[Any]:
        columns = self._table.c
        return connection.execute(
            select(
                columns.id, columns.crashes, columns.claimed, columns.attempts, columns.ordered, columns.partitionkey
            )
            .where(
                columns.consumer == self._consumer,
                columns.state == WAITING,
                columns.next_attempt_at <= self._moments.now(),
                which,
            )
            .order_by(columns.next_attempt_at, columns.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()

    def _mine(self, place: Parking) -> tuple[ColumnElement[bool], ...]:
        columns = self._table.c
        return columns.id == place.id, columns.token == place.token, columns.claimed == 1

    def _add(
        self,
        connection: Connection,
        content: Event | Malformed,
        key: bytes,
        topic: str,
        parked: ParkingDecision,
        *,
        at: ColumnElement[datetime] | None = None,
    ) -> bool:
        if parked.retry_in is not None:
            at = self._moments.after(parked.retry_in)
        values = self._values(content, key, topic, parked, at=at)
        return connection.execute(self._insert.values(values)).rowcount == 1

    def _values(
        self,
        content: Event | Malformed,
        key: bytes,
        topic: str,
        parked: ParkingDecision,
        *,
        at: ColumnElement[datetime] | None = None,
    ) -> dict[str, object]:
        return {
            "consumer": self._consumer,
            "key": key,
            "state": parked.state,
            "reason": parked.reason,
            "error": shown(parked.error),
            "traceback": shown(parked.traceback),
            "attempts": parked.attempts,
            "next_attempt_at": at,
            "ordered": int(self._ordered and parked.in_line),
            "topic": shown(topic),
            "envelope": envelope_of(content),
            **shown_columns(content),
        }
