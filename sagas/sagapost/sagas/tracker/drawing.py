"""A saga as text: its timeline, and its events as a tree of causes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sagapost.sagas.choreography.graph import short_name
from sagapost.sagas.tracker.entries import Entry
from sagapost.sagas.tracker.lifecycle import LIFECYCLE
from sagapost.sagas.tracker.view import SagaView

__all__ = ["lines_of_timeline", "lines_of_tree", "span", "timeline", "tree"]


def timeline(view: SagaView, *, now: datetime | None = None) -> str:
    """Return the saga's history line by line, then what is open.

    :param now: say also what is late by then.
    """
    return "\n".join(lines_of_timeline(view, now=now)) + "\n"


def tree(view: SagaView) -> str:
    """Return the saga's events, each below the one whose handling caused it."""
    return "\n".join(lines_of_tree(view)) + "\n"


def lines_of_timeline(view: SagaView, *, now: datetime | None = None) -> Iterator[str]:
    """Yield the lines of `timeline`."""
    yield _headline(view)
    if view.keys:
        yield "  " + ", ".join(f"{name}={value}" for name, value in view.keys)
    if view.truncated:
        yield "  (older events are no longer kept)"
    width = max((len(view.service(entry.source)) for entry in view.history), default=0)
    failed = {step.event for step in view.steps if step.failed}
    for entry in view.history:
        after = f"+{(view.at(entry) - view.started).total_seconds():.3f}s"
        yield f"  {after:>12}  {_mark(entry, failed)} {view.service(entry.source):<{width}}  {_what(entry)}"
    for rollback in view.rollbacks:
        if not rollback.finished:
            stuck = f", stuck at {rollback.stuck}" if rollback.stuck else ""
            yield f"  rollback   {rollback.service}: {len(rollback.done)} of {rollback.total} undone{stuck}"
    for task in view.tasks:
        yield f"  asks       {task.service}: {task.title} (task {task.task}: {' or '.join(task.outcomes)})"
    for deadline in view.deadlines:
        late = now is not None and deadline.due <= now
        when = f"late by {span(now - deadline.due)}" if late and now is not None else f"due {deadline.due:%F %T}"
        yield f"  deadline   {deadline.service}: {deadline.name}, {when}"
    for step in view.expected:
        since = f", for {span(now - step.since)}" if now is not None else ""
        yield f"  expected   {step.service}: {step.step}, after {short_name(step.after)}{since}"


def lines_of_tree(view: SagaView) -> Iterator[str]:
    """Yield the lines of `tree`."""
    known = {entry.id for entry in view.history}
    children: dict[str | None, list[Entry]] = {}
    for entry in view.history:
        children.setdefault(entry.cause if entry.cause in known else None, []).append(entry)
    yield _headline(view)
    # (entry, what stands before its children, whether it is the last of its siblings); no recursion: a saga may be
    # a thousand events deep.
    tops = children.pop(None, [])
    stack = [(entry, "", n == len(tops) - 1) for n, entry in enumerate(tops)][::-1]
    while stack:
        entry, before, last = stack.pop()
        yield f"{before}{'└─' if last else '├─'} {_what(entry)} ({view.service(entry.source)})"
        below = children.pop(entry.id, [])
        deeper = before + ("   " if last else "│  ")
        stack += [(child, deeper, n == len(below) - 1) for n, child in enumerate(below)][::-1]


def span(elapsed: timedelta) -> str:
    """Return a length of time as people say it."""
    seconds = max(elapsed.total_seconds(), 0.0)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def _headline(view: SagaView) -> str:
    took = f", {span(view.ended - view.started)}" if view.ended is not None else ""
    why = f": {view.reason}" if view.reason else ""
    return (
        f"saga {view.saga}  {view.state.value}{took}{why}  (started {view.started:%F %T}, {len(view.history)} events)"
    )


def _mark(entry: Entry, failed: set[str]) -> str:
    if entry.type.startswith(LIFECYCLE):
        return "·"
    return "✗" if entry.type in failed else "●"


def _what(entry: Entry) -> str:
    name = short_name(entry.type)
    detail: Any = entry.detail or {}
    shown = [
        str(detail[field])
        for field in ("compensation", "island", "step", "state", "title", "outcome", "reason", "error", "by")
        if detail.get(field)
    ]
    if "remaining" in detail:
        shown.append(f"{detail['remaining']} to go")
    return f"{name} ({', '.join(shown)})" if shown else name
