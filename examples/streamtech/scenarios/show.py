"""Scenarios on a terminal: what there is, what happens, the timeline, and what the services have in the end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from examples.streamtech.scenarios import SCENARIOS
from examples.streamtech.scenarios.scenario import Outcome, Scenario
from sagapost.sagas.tracker import SagaView
from sagapost.sagas.tracker import timeline as tracker_timeline


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
    where = (
        "PostgreSQL and RabbitMQ, each part a process"
        if servers
        else "SQLite and an in-memory broker, in this process"
    )
    console.print(f"StreamTech, {scenario.name}: {scenario.shows}", soft_wrap=True, highlight=False)
    console.print(f"Services: {names}; on {where}.", soft_wrap=True, highlight=False)


def outcome(console: Console, ended: Outcome) -> None:
    """Show the timeline, and what the services' own data says."""
    if ended.view is not None:
        timeline(console, ended.view)
    table = Table(title="in the services' own tables", title_justify="left", show_header=False)
    for name, value in ended.expected.items():
        found = ended.found.get(name)
        wrong = "" if found == value else f"  (expected {_text(value)})"
        table.add_row(name, f"{_text(found)}{wrong}", style="bold red" if wrong else "")
    console.print(table)
    for complaint in ended.complaints:
        console.print(complaint, style="bold red", soft_wrap=True)
    if not ended.complaints:
        console.print(
            "As it should be: the books of all services agree, and so does the tracker.",
            style="bold green",
            soft_wrap=True,
        )


def timeline(console: Console, view: SagaView) -> None:
    """Show the saga as `sagapost saga show` does."""
    for line in tracker_timeline(view).splitlines():
        failed, own = "✗" in line, "·" in line
        console.print(line, style="red" if failed else "dim" if own else "", soft_wrap=True, highlight=False)


def _text(value: object) -> str:
    return "-" if value in {None, ""} else str(value)
