"""How many sagas are not over in a database, and how many wait for an operator: what people look at first."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from sagapost.sagas.tables import SagaTables

__all__ = ["SagaCounts", "saga_counts"]


@dataclass(frozen=True, slots=True)
class SagaCounts:
    """What is not over in one service, and what waits for an operator."""

    rolling_back: int = 0
    stuck: int = 0
    tasks: int = 0
    """Open ones."""


def saga_counts(connection: Connection, tables: SagaTables) -> dict[str, SagaCounts]:
    """Return the counts of every service that keeps its ledger here and has something to count; each by an index."""
    states, tasks = tables.states.c, tables.tasks.c
    found: dict[str, dict[str, int]] = {}
    for what, service, wanted in (
        ("rolling_back", states.service, states.state == "rolling_back"),
        ("stuck", states.service, states.state == "stuck"),
        ("tasks", tasks.service, tasks.state == "open"),
    ):
        for name, count in connection.execute(select(service, func.count()).where(wanted).group_by(service)):
            found.setdefault(name, {})[what] = count
    return {name: SagaCounts(**counts) for name, counts in sorted(found.items())}
