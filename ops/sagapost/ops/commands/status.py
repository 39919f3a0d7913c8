"""`sagapost status`: how far behind the outbox is."""

from __future__ import annotations

import anyio

from sagapost.core.outbox_store import OutboxBacklog
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.commands.output import write_json, write_table
from sagapost.ops.composition import make_store
from sagapost.ops.settings import load_settings
from sagapost.ops.settings.units import format_duration

__all__ = ["status"]


def status(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Show how many events wait in the outbox, and why."""
    loaded = load_settings(required=("database_url",), env_file=env_file)

    async def look() -> OutboxBacklog:
        store = make_store(loaded)
        try:
            await store.check_schema()
            return await store.backlog()
        finally:
            await store.aclose()

    backlog = anyio.run(look)
    age = backlog.oldest_age
    if as_json:
        write_json(
            {
                "pending": backlog.pending,
                "oldest_seconds": None if age is None else round(age.total_seconds(), 3),
                "held": backlog.held,
                "dead": backlog.dead,
                "scheduled": backlog.scheduled,
            }
        )
        return
    rows = [
        ("pending", str(backlog.pending), "committed and not yet published"),
        ("oldest", "-" if age is None else format_duration(age), "age of the first of them"),
        ("held", str(backlog.held), "refused by the broker; tried again"),
        ("dead", str(backlog.dead), "given up; see `sagapost dead list`"),
        ("scheduled", str(backlog.scheduled), "not due yet"),
    ]
    write_table(("events", "count", "meaning"), rows, styles={"events": "cyan", "meaning": "dim"})
