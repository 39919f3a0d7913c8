"""Corrective actions: what is done, once, about sagas that are late, silent, or stuck."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, assert_never, cast

from sqlalchemy import Connection, CursorResult, literal, select, update

from sagapost.core.backoff import Backoff
from sagapost.core.codec import encode_data
from sagapost.core.databases import kit_of
from sagapost.core.errors import ConfigurationError
from sagapost.core.ids import new_id
from sagapost.core.life import Runtime
from sagapost.core.naming import event_type_of
from sagapost.core.observer import Observer
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.events import RollbackRequested
from sagapost.sagas.tracker import observations as obs
from sagapost.sagas.tracker.intake import reason_of
from sagapost.sagas.tracker.tracker import Tracker, cause_of
from sagapost.sagas.tracker.view import SagaState
from sagapost.sagas.tracker.webhooks import Webhooks

__all__ = ["Action", "PublishEvent", "Notify", "RequestRollback", "Rule", "Watch", "WatchSettings"]

_WINDOW = timedelta(days=1)
"""How far back a rule about sagas that are over looks."""


@dataclass(frozen=True, slots=True)
class RequestRollback:
    """Ask every service to undo its part of the saga."""


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """Publish this event in the saga: an instance of a class named with `@event`, or any payload with a type."""

    payload: object
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Notify:
    """POST the saga's state as JSON to a URL, until it answers with success."""

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        """Check the form; the URL is not shown, since many hold a token."""
        if not self.url.startswith(("https://", "http://")):
            raise ConfigurationError("A webhook's URL begins with https:// or http://.")


Action: TypeAlias = RequestRollback | PublishEvent | Notify


@dataclass(frozen=True, slots=True)
class Rule:
    """When to do what; at most once per saga, whatever happens.

    :param name: names the rule in the record; a rule of a new name is applied anew.
    :param states: sagas in one of these. Of those that are over, only what ended within the last day.
    :param late: only those with a deadline that has passed.
    :param silent_for: only those of which no event came for so long.
    :raises ConfigurationError: if the name is empty or too long, or the rule says nothing about when.
    """

    name: str
    action: Action
    states: tuple[SagaState, ...] = ()
    late: bool = False
    silent_for: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Check that it can be applied."""
        if not 0 < len(self.name) <= 100:
            raise ConfigurationError(f"A rule's name has 1 to 100 characters; this one has {len(self.name)}.")
        if not self.states and not self.late:
            raise ConfigurationError(f"The rule {self.name!r} needs states or late=True, or it takes all.")

    @property
    def reason(self) -> str:
        """Why, for the record."""
        parts = [f"rule {self.name!r}"]
        if self.states:
            parts.append(f"the saga is {' or '.join(self.states)}")
        if self.late:
            parts.append("a deadline has passed")
        if self.silent_for:
            parts.append(f"no event came for {self.silent_for}")
        return ": ".join([parts[0], ", ".join(parts[1:])])


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """Settings of a watch."""

    interval: timedelta = timedelta(seconds=5)
    """How often the rules are applied; bounds how late an action is."""
    chunk: int = 100
    """Sagas acted on in one transaction."""
    by: str = "tracker"
    """Who asks, in the record of a rollback."""
    reconnect: Backoff = field(
        default_factory=lambda: Backoff(base=timedelta(milliseconds=200), cap=timedelta(seconds=10))
    )
    """Wait between attempts to reach the database."""


class Watch:
    """Applies rules to the sagas of a tracker. Any number may run on one database.

    The decision, its record and the event are one transaction in the tracker's database: an action is taken once per
    rule and saga, through its outbox, under one event id. A webhook is sent at least once, always with the same
    ``Idempotency-Key``, by which its receiver knows a repetition.

    :param outbox: the tracker's own, in the same database; a relay must serve it.
    :raises ConfigurationError: if two rules have the same name, or what a rule emits cannot be published.
    """

    def __init__(
        self,
        tracker: Tracker,
        rules: Iterable[Rule],
        *,
        outbox: Outbox,
        settings: WatchSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._tracker = tracker
        self._rules = tuple(rules)
        names = [rule.name for rule in self._rules]
        if len(set(names)) < len(names):
            raise ConfigurationError("Two rules have the same name; by the name it is known what was done already.")
        self._outbox = outbox
        self._settings = settings if settings is not None else WatchSettings()
        # Encoded here, where a mistake ends the start and not the watch: no code of the user runs after this.
        self._published = {rule.name: _encoded(rule, by=self._settings.by) for rule in self._rules}
        self._runtime = Runtime("tracker rules", observer=observer, backoff=self._settings.reconnect)
        self._observer = self._runtime.observer
        self._webhooks = Webhooks(tracker, observer=self._observer)

    def stop(self) -> None:
        """Let `run` return after the action in flight."""
        self._runtime.stop.set()

    async def run(self) -> None:
        """Apply the rules until `stop` is called or the task is cancelled. Outages are waited out."""

        async def take_turn() -> timedelta | None:
            return timedelta(0) if await self.step() else None

        await self._runtime.every(self._settings.interval, take_turn)

    async def step(self) -> int:
        """Apply every rule to a chunk of sagas and send the webhooks that are due; return how much was done."""
        done = 0
        for rule in self._rules:
            taken = await self._applied(rule)
            for saga in taken:
                self._observer.notify(obs.ActionTaken(saga, rule.name, rule.reason))
            done += len(taken)
        return done + await self._webhooks.send_due()

    async def _applied(self, rule: Rule) -> list[str]:
        """Apply one rule to a chunk of sagas; if that fails for another reason than an outage, to each by itself."""
        try:
            return await self._tracker.database.run(partial(self._apply, rule=rule))
        except Exception as error:
            if self._tracker.is_outage(error):
                raise
        try:
            return await self._applied_one_by_one(rule)
        except Exception as error:
            if self._tracker.is_outage(error):
                raise
            self._observer.notify(obs.RuleFailed(rule.name, reason_of(cause_of(error))))
            return []

    async def _applied_one_by_one(self, rule: Rule) -> list[str]:
        """Apply a rule saga by saga; where it cannot be applied, its action has failed once and for all."""
        database, taken = self._tracker.database, list[str]()
        for saga in await database.run(partial(self._candidates, rule=rule)):
            try:
                if await database.run(partial(self._decide, rule=rule, saga=saga)):
                    taken.append(saga)
            except Exception as error:
                if self._tracker.is_outage(error):
                    raise
                reason = reason_of(cause_of(error))
                await database.run(partial(self._record, rule=rule, saga=saga, error=reason))
                self._observer.notify(obs.ActionFailed(saga, rule.name, reason))
        return taken

    def _apply(self, connection: Connection, rule: Rule) -> list[str]:
        return [saga for saga in self._candidates(connection, rule) if self._decide(connection, rule, saga)]

    def _candidates(self, connection: Connection, rule: Rule) -> Sequence[str]:
        self._tracker.take_turn(connection)
        sagas, actions = self._tracker.tables.sagas.c, self._tracker.tables.actions.c
        now: datetime = self._tracker.clock.now()
        # Applied already? The primary key of the actions answers.
        applied = select(literal(1)).where(actions.saga == sagas.saga, actions.rule == rule.name).exists()
        asked = select(sagas.saga).where(~applied).limit(self._settings.chunk)
        if rule.states:
            asked = asked.where(sagas.state.in_([state.value for state in rule.states]))
            if any(state.over for state in rule.states):
                asked = asked.where(sagas.ended_at.is_(None) | (sagas.ended_at >= now - _WINDOW))
        if rule.late:
            asked = asked.where(sagas.due_at <= now)
        if rule.silent_for:
            # The start is in the index, and no saga that began later can be silent for so long.
            asked = asked.where(sagas.started_at <= now - rule.silent_for, sagas.last_at <= now - rule.silent_for)
        return connection.execute(asked).scalars().all()

    def _decide(self, connection: Connection, rule: Rule, saga: str) -> bool:
        """Record the action and publish its event; False if another watch did."""
        self._tracker.take_turn(connection)
        if not self._record(connection, rule, saga):
            return False
        published = self._published[rule.name]
        if published is None:
            return True  # a webhook; sent after the commit
        event = self._outbox.publish(
            connection,
            published.data,
            correlationid=saga,
            key=saga if published.ordered else None,
            type=published.type,
            datacontenttype=published.media_type,
        )
        table = self._tracker.tables.actions
        mine = (table.c.saga == saga) & (table.c.rule == rule.name)
        connection.execute(update(table).where(mine).values(key=event.id))
        return True

    def _record(self, connection: Connection, rule: Rule, saga: str, error: str | None = None) -> bool:
        """Record that a rule acts on a saga, or with an `error` that it cannot; False if that is recorded."""
        action, now, table = rule.action, self._tracker.clock.now(), self._tracker.tables.actions
        pending = error is None and isinstance(action, Notify)
        values = {
            "saga": saga,
            "rule": rule.name,
            "state": "failed" if error is not None else "pending" if pending else "done",
            "key": new_id(),
            "reason": rule.reason,
            "url": action.url if isinstance(action, Notify) else None,
            "due_at": now if pending else None,
            "last_error": error,
        }
        statement = kit_of(connection).insert_once(table).values(values)
        return bool(cast("CursorResult[Any]", connection.execute(statement)).rowcount)


@dataclass(frozen=True, slots=True)
class _Published:
    """What a rule publishes, encoded."""

    type: str
    data: bytes
    media_type: str
    ordered: bool
    """Whether it has the saga's id as its ordering key. What services are asked for waits behind nothing."""


def _encoded(rule: Rule, *, by: str) -> _Published | None:
    """Encode what a rule publishes; None for a webhook.

    :raises ConfigurationError: if it cannot be.
    """
    payload: object
    type_: str | None
    match rule.action:
        case Notify():
            return None
        case RequestRollback():
            payload, type_ = RollbackRequested(rule.reason, by), None
        case PublishEvent(payload, type_):
            pass
        case _ as never:
            assert_never(never)
    try:
        type_ = type_ if type_ is not None else event_type_of(type(payload))
        data, media_type = encode_data(payload, event_type=type_)
    except Exception as error:
        raise ConfigurationError(f"The rule {rule.name!r} emits what cannot be published: {error}") from error
    return _Published(type_, data, media_type, ordered=isinstance(rule.action, PublishEvent))
