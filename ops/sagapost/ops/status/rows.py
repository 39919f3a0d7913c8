"""What was seen, as the lines of a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

from sagapost.ops.status.verdict import rounded

if TYPE_CHECKING:
    from sagapost.ops.status.seen import Seen

__all__ = ["COLUMNS", "rows_of"]

COLUMNS = ("where", "what", "value", "meaning")
Row: TypeAlias = tuple[str, str, str, str]

_STATES: Mapping[str, str] = {
    "waiting": "failed; tried again when due",
    "behind": "wait for an earlier message of their key",
    "dead": "an operator decides; see `sagapost parked list`",
}
_LONGEST = 300


def rows_of(seen: Seen) -> list[Row]:
    """Return a line for each figure, and one for each example."""
    return [row for part in (_outbox, _relays, _broker, _held, _inboxes, _sagas, _tracker) for row in part(seen)]


def _outbox(seen: Seen) -> Iterator[Row]:
    backlog, outbox = seen.backlog, seen.outbox
    age = "-" if backlog.oldest_age is None else rounded(backlog.oldest_age)
    yield "outbox", "pending", str(backlog.pending), "committed and not yet published"
    yield "outbox", "oldest", age, "age of the first of them"
    yield "outbox", "held", str(outbox.held), "refused by the broker; tried again"
    yield "outbox", "dead", str(backlog.dead), "given up; an operator decides"
    yield "outbox", "blocked", str(outbox.blocked), "of the dead letters: those whose key waits for the operator"
    yield "outbox", "scheduled", str(backlog.scheduled), "not due yet"
    late = "" if outbox.overdue_for is None else f", the first for {rounded(outbox.overdue_for)}"
    yield "outbox", "overdue", str(outbox.overdue), f"scheduled and due{late}; a relay moves them"
    for topic in outbox.topics:
        yield f"topic {topic.topic}", "oldest", rounded(topic.oldest), f"of {topic.events} that wait"


def _relays(seen: Seen) -> Iterator[Row]:
    outbox = seen.outbox
    yield "relays", "alive", str(seen.living), "publish" if seen.living else "no relay: nothing is published"
    yield "relays", "partitions", f"{outbox.owned} of {outbox.partitions}", "are owned by a relay"
    for relay in outbox.relays:
        silent = seen.silent_for(relay.expires_in)
        since = "" if relay.since is None else f"started {relay.since.isoformat(timespec='seconds')}; "
        owns = f"{since}owns {relay.partitions} of {outbox.partitions} partitions"
        if silent is not None:
            yield f"relay {relay.relay}", "silent", rounded(silent), owns
        else:
            age = "-" if relay.since is None else rounded(outbox.now - relay.since)
            yield f"relay {relay.relay}", "alive", age, owns


def _broker(seen: Seen) -> Iterator[Row]:
    if seen.broker is None:
        yield "broker", "reachable", "-", "none is set that could be asked from here (SAGAPOST_BROKER_URL)"
        return
    yield "broker", "reachable", "no" if seen.broker.problem else "yes", seen.broker.problem or seen.broker.address
    for queue in seen.broker.queues:
        where = f"queue {queue.queue}"
        if queue.messages is None:
            yield where, "messages", "-", "is not on the broker; see `sagapost declare`"
        else:
            yield where, "messages", str(queue.messages), f"wait to be handed out; {queue.consumers} consumers"
        if queue.dead_letter_queue is not None:
            count = "-" if queue.dead_letters is None else str(queue.dead_letters)
            yield f"queue {queue.dead_letter_queue}", "messages", count, "rejected, or handed out too often"


def _held(seen: Seen) -> Iterator[Row]:
    for held in seen.outbox.held_events:
        yield (
            "held event",
            held.key or "-",
            _times(held.attempts),
            _brief(f"{held.type} {held.event_id}: {held.reason}{_behind(held.behind)}"),
        )
    for dead in seen.outbox.blocked_keys:
        yield (
            "blocked key",
            dead.key or "-",
            _times(dead.attempts),
            _brief(f"{dead.type} {dead.event_id} is dead: {dead.reason}{_behind(dead.behind)}"),
        )


def _inboxes(seen: Seen) -> Iterator[Row]:
    for name, inbox in seen.inboxes.items():
        for state, text in _STATES.items():
            yield f"inbox {name}", state, str(inbox.by_state.get(state, 0)), text
        for each in inbox.examples:
            what = f"{each.type or 'no event'} {each.event_id or ''}".rstrip()
            why = f"{each.reason}, {_times(each.attempts)}: {each.error}{_behind(each.behind)}"
            yield f"inbox {name}", f"{each.state} {each.id}", rounded(each.age), _brief(f"{what}: {why}")


def _sagas(seen: Seen) -> Iterator[Row]:
    for name, here in seen.sagas.items():
        where = f"sagas of {name}"
        since = "" if here.oldest_rollback is None else f"; the first for {rounded(here.oldest_rollback)}"
        yield where, "rolling back", str(here.rolling_back), f"compensations run, or are tried again{since}"
        yield where, "stuck", str(here.stuck), "a compensation failed for good; an operator decides"
        yield where, "compensations", str(here.pending_compensations), "still to be done by these"
        yield where, "tasks", str(here.tasks), "an operator decides; see `sagapost tasks list`"
        yield where, "late tasks", str(here.late_tasks), "of these: a decision was expected before now"
        for each in here.failing:
            error = each.error or ""
            yield f"saga {each.saga}", f"{each.state} {each.name}", _times(each.attempts), _brief(f"{name}: {error}")


def _tracker(seen: Seen) -> Iterator[Row]:
    if seen.tracker is None:
        return
    yield "tracker", "stuck", str(seen.tracker.stuck), "sagas; see `sagapost saga list --state stuck`"
    yield "tracker", "late", str(seen.tracker.late), "sagas with a deadline that has passed"
    for saga in seen.tracker.sagas:
        late = "-" if saga.late_for is None else f"late {rounded(saga.late_for)}"
        yield f"saga {saga.saga}", saga.state, late, _brief(saga.reason or "")


def _behind(count: int) -> str:
    if not count:
        return ""
    return f" ({count} {'waits' if count == 1 else 'wait'} behind it)"


def _times(attempts: int) -> str:
    return f"{attempts} attempt{'' if attempts == 1 else 's'}"


def _brief(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
