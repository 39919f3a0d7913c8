"""Whether what was seen is well: thresholds, and one sentence for each that is crossed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sagapost.ops.settings.units import format_duration

if TYPE_CHECKING:
    from sagapost.ops.status.seen import Seen

__all__ = ["Complaint", "Thresholds", "complaints", "rounded"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What still counts as well."""

    min_relays: int = 1
    max_age: timedelta = timedelta(minutes=1)
    """Of events that wait in the outbox, and of how long scheduled ones are overdue."""
    max_held: int = 0
    """Held events."""
    max_dead: int = 0
    """Dead letters of the outbox; likewise those of each inbox and each dead-letter queue of the broker."""
    max_parked_age: timedelta = timedelta(hours=1)
    """Of messages that an inbox tries again, and of rollbacks."""
    max_stuck: int = 0
    """Stuck sagas of a service or a tracker."""
    max_late: int = 0
    """Late sagas and tasks of a service or a tracker."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """One thing that is not well."""

    code: str
    """For programs; stays the same when the sentence changes."""
    subject: str
    """The relay, topic, queue, inbox or service it is about."""
    text: str
    since: datetime | None = None
    """Since when it is so, where that is known."""


def complaints(seen: Seen, allowed: Thresholds) -> list[Complaint]:
    """Return what is not well, the cause before what comes of it."""
    parts = (_relays, _broker, _outbox, _inboxes, _queues, _sagas, _tracker)
    return [complaint for part in parts for complaint in part(seen, allowed)]


def rounded(duration: timedelta) -> str:
    """Return a duration to the second, for people."""
    return format_duration(timedelta(seconds=round(duration.total_seconds())))


def _relays(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    if seen.living >= allowed.min_relays:
        return
    count = "no relay is" if not seen.living else f"only {seen.living} of {allowed.min_relays} relays are"
    silent = [each for each in map(seen.silent_for, (relay.expires_in for relay in seen.outbox.relays)) if each]
    last = f"; the last sign of life was {rounded(min(silent))} ago" if silent else ""
    since = seen.outbox.now - min(silent) if silent else None
    yield Complaint("relays", "relays", f"{count} alive: start `sagapost relay`{last}", since)


def _broker(seen: Seen, _: Thresholds) -> Iterator[Complaint]:
    if seen.broker is not None and seen.broker.problem is not None:
        yield Complaint("broker", seen.broker.address, seen.broker.problem)


def _outbox(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    outbox = seen.outbox
    for topic in outbox.topics:
        if topic.oldest > allowed.max_age:
            events = f"{topic.events} events that wait" if topic.events > 1 else "1 event that waits"
            text = f"{topic.topic}: the oldest of {events} is {rounded(topic.oldest)} old"
            yield Complaint("old-events", topic.topic, text, outbox.now - topic.oldest)
    if outbox.held > allowed.max_held:
        first = outbox.held_events[0] if outbox.held_events else None
        why = f", as {first.type} {first.event_id}: {first.reason}" if first is not None else ""
        since = None if first is None else first.published_at
        yield Complaint("held", "outbox", f"{_many(outbox.held, 'event')} held back{why}", since)
    if seen.backlog.dead > allowed.max_dead:
        text = f"{_many(seen.backlog.dead, 'dead letter')} in the outbox; see `sagapost dead list`"
        yield Complaint("dead", "outbox", text)
    if outbox.blocked > allowed.max_dead:
        text = f"{_many(outbox.blocked, 'dead letter')} in the outbox: the later events of the key wait"
        since = min((key.died_at for key in outbox.blocked_keys), default=None)
        yield Complaint("blocked", "outbox", text, since)
    if outbox.overdue_for is not None and outbox.overdue_for > allowed.max_age:
        text = f"{_many(outbox.overdue, 'scheduled event')} overdue, the first by {rounded(outbox.overdue_for)}"
        yield Complaint("overdue", "outbox", text, outbox.now - outbox.overdue_for)


def _many(count: int, what: str) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


def _inboxes(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    for name, inbox in seen.inboxes.items():
        dead = inbox.by_state.get("dead", 0)
        if dead > allowed.max_dead:
            first = next((each for each in inbox.examples if each.state == "dead"), None)
            why = "" if first is None else f", as {first.type or 'a message'}: {_line(first.error)}"
            since = None if first is None else seen.outbox.now - first.age
            yield Complaint("parked-dead", name, f"inbox {name}: {_many(dead, 'message')} dead{why}", since)
        if inbox.oldest_waiting is not None and inbox.oldest_waiting > allowed.max_parked_age:
            text = f"inbox {name}: a message has been parked for {rounded(inbox.oldest_waiting)}"
            yield Complaint("parked-old", name, text, seen.outbox.now - inbox.oldest_waiting)


def _queues(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    for queue in seen.broker.queues if seen.broker is not None else ():
        if queue.dead_letters is not None and queue.dead_letters > allowed.max_dead:
            where = queue.dead_letter_queue or queue.queue
            text = f"{_many(queue.dead_letters, 'message')} in the broker's dead-letter queue {where}"
            yield Complaint("dead-letter-queue", where, text)
        if queue.messages and queue.consumers == 0:
            text = f"nobody consumes the queue {queue.queue}, where {_many(queue.messages, 'message')}"
            yield Complaint("not-consumed", queue.queue, text)


def _sagas(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    for service, sagas in seen.sagas.items():
        if sagas.stuck > allowed.max_stuck:
            text = f"{service}: {_many(sagas.stuck, 'saga')} stuck; see `sagapost saga list --state stuck`"
            yield Complaint("stuck", service, text)
        if sagas.failing:
            first = sagas.failing[0]
            again = f"saga {first.saga}, after {first.attempts} attempts"
            text = f"{service}: the compensation {first.name} fails ({again}): {_line(first.error or '')}"
            yield Complaint("compensation", service, text, first.rolling_back_since)
        if sagas.oldest_rollback is not None and sagas.oldest_rollback > allowed.max_parked_age:
            text = f"{service}: a saga has been rolling back for {rounded(sagas.oldest_rollback)}"
            yield Complaint("rollback", service, text, seen.outbox.now - sagas.oldest_rollback)
        if sagas.late_tasks > allowed.max_late:
            text = f"{service}: {_many(sagas.late_tasks, 'task')} late; see `sagapost tasks list`"
            yield Complaint("late", service, text)


def _tracker(seen: Seen, allowed: Thresholds) -> Iterator[Complaint]:
    if seen.tracker is None:
        return
    if seen.tracker.stuck > allowed.max_stuck:
        text = f"tracker: {_many(seen.tracker.stuck, 'saga')} stuck; see `sagapost saga list --state stuck`"
        yield Complaint("stuck", "tracker", text)
    if seen.tracker.late > allowed.max_late:
        text = f"tracker: {_many(seen.tracker.late, 'saga')} late; see `sagapost saga list --late`"
        yield Complaint("late", "tracker", text)


def _line(error: str) -> str:
    """Return the first line of an error, as far as it fits into a line."""
    return error.partition("\n")[0][:200]
