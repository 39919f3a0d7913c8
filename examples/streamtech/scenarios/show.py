"""Scenarios on a terminal: what there is, what happens, the timeline, and what the services have in the end."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from examples.streamtech.scenarios import SCENARIOS
from examples.streamtech.scenarios.scenario import Outcome, Scenario
from sagapost.core import Event

_UNDOING = frozenset({"cancelled", "released", "refunded", "revoked", "rolled-back", "compensation-done"})
_FAILING = frozenset(
    {"insufficient", "declined", "missing", "overdue", "withdrawn", "rollback-requested", "needs-human"}
)


def catalogue(console: Console) -> None:
    """List the scenarios."""
    table = Table(show_header=False, box=None, pad_edge=False)
    for scenario in SCENARIOS.values():
        table.add_row(scenario.name, scenario.shows)
    console.print(table)
    console.print("\nmake demo SCENARIO=item-missing            # in this process, on SQLite", highlight=False)
    console.print("make demo SCENARIO=item-missing SERVERS=1  # on PostgreSQL and RabbitMQ", highlight=False)


def introduction(console: Console, scenario: Scenario, *, servers: bool) -> None:
    """Say what will be shown."""
    names = ", ".join(service.name for service in scenario.services) or "none but a database"
    where = "PostgreSQL and RabbitMQ, a process each" if servers else "SQLite and an in-memory broker, in this process"
    console.print(f"StreamTech, {scenario.name}: {scenario.shows}", soft_wrap=True, highlight=False)
    console.print(f"Services: {names}; on {where}.", soft_wrap=True, highlight=False)


def outcome(console: Console, ended: Outcome) -> None:
    """Show the timeline, and what the services' own data says."""
    if ended.timeline:
        timeline(console, ended.timeline)
    table = Table(title="in the services' own tables", title_justify="left", show_header=False)
    for name, value in ended.expected.items():
        found = ended.found.get(name)
        wrong = "" if found == value else f"  (expected {_text(value)})"
        table.add_row(name, f"{_text(found)}{wrong}", style="bold red" if wrong else "")
    console.print(table)
    for complaint in ended.complaints:
        console.print(complaint, style="bold red", soft_wrap=True)
    if not ended.complaints:
        console.print("As it should be, and the books of all services agree.", style="bold green", soft_wrap=True)


def timeline(console: Console, events: list[Event]) -> None:
    """Draw who said what, when, and because of what."""
    table = Table(title=f"saga {events[0].correlationid}", title_justify="left", box=None, pad_edge=False)
    for column in ("at", "service", "event", "because of"):
        table.add_column(column)
    names = {event.id: _name(event) for event in events}
    for event in events:
        seconds = (event.time - events[0].time).total_seconds()
        table.add_row(
            f"{seconds:+.2f} s",
            _service(event),
            f"{_name(event)} {_detail(event)}".rstrip(),
            names.get(event.causationid or "", ""),
            style=_style(event),
        )
    console.print(table)


def _name(event: Event) -> str:
    words = event.type.split(".")
    return words[-2] if len(words) > 1 else event.type


def _detail(event: Event) -> str:
    """Which compensation, where the library itself speaks of one."""
    if not event.type.startswith("sagapost."):
        return ""
    return str(msgspec.json.decode(event.data).get("compensation", ""))


def _service(event: Event) -> str:
    return event.source.removeprefix("https://").partition(".")[0]


def _style(event: Event) -> str:
    name = _name(event)
    if any(word in name for word in _FAILING):
        return "red"
    return "yellow" if any(word in name for word in _UNDOING) else ""


def _text(value: object) -> str:
    return "-" if value in {None, ""} else str(value)
