"""`sagapost db`: the tables in the database."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, TypeAlias

import anyio
import typer

from sagapost.core.schema import UpgradeProgress
from sagapost.ops import database
from sagapost.ops.commands.loading import load
from sagapost.ops.commands.options import AsJson, EnvFile
from sagapost.ops.output import write_json, write_line
from sagapost.ops.registry import UnknownSchemeError, database_adapter
from sagapost.ops.tables import Tables, tables_of

__all__ = ["check", "sql", "upgrade"]


WithTracker: TypeAlias = Annotated[
    bool, typer.Option("--tracker", help="The tables of `sagapost track` too; its database is usually its own.")
]


def upgrade(tracker: WithTracker = False, env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Create what is missing and migrate what is older, in small steps that are safe under load.

    Safe to run on every start, and by several processes at once. Stopped half-way, it is run again and goes on.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    tables = tables_of(loaded.settings, with_tracker=tracker)

    def report(progress: UpgradeProgress) -> None:
        again = f" (others hold the table; attempt {progress.attempt})" if progress.attempt > 1 else ""
        step = f"{progress.part} {progress.version}, step {progress.step} of {progress.steps}"
        sys.stderr.write(f"{step}: {progress.what}{again}\n")

    changed = anyio.run(partial(database.upgrade, loaded, tables, report=report))
    where = database.address_of(database.engine_url(loaded.database_url))
    if as_json:
        write_json({"database": where, "changed": changed, "versions": _versions(tables)})
    elif changed:
        write_line(f"{where}: installed {', '.join(changed)}")
    else:
        write_line(f"{where}: nothing to do")


def check(env_file: EnvFile = None, as_json: AsJson = False) -> None:
    """Verify that the tables are there and of this release; exit code 4 if not.

    Says also what is missing beside them that everything works without, only slower.
    """
    loaded = load(required=("database_url",), env_file=env_file)
    tables = tables_of(loaded.settings)

    async def run() -> tuple[list[str], list[str]]:
        async with database.connect(loaded) as connection:
            await database.check(connection, tables.versions, tables.parts)
            await database.check_needed(connection, tables.parts)
            missing = await database.missing(connection, tables.parts)
            return missing, await database.remarks(connection, tables.parts)

    missing, remarks = anyio.run(run)
    where = database.address_of(database.engine_url(loaded.database_url))
    if as_json:
        write_json({"database": where, "versions": _versions(tables), "missing": missing, "remarks": remarks})
        return
    versions = ", ".join(f"{name} {version}" for name, version in _versions(tables).items())
    write_line(f"{where}: as this release needs it ({versions})")
    for what in missing:
        write_line(f"{where}: {what} is missing; `sagapost db upgrade` creates it")
    for said in remarks:
        write_line(f"{where}: {said}")


def sql(
    env_file: EnvFile = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--dialect", help="postgresql or sqlite. Default: that of SAGAPOST_DATABASE_URL.", show_default=False
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option("--from", min=1, help="Version of the tables that are there.", show_default=False),
    ] = None,
) -> None:
    """Write the statements that create everything in an empty database, for a migration of your own.

    With --from those that lead from that version to this release's.
    """
    loaded = load(required=() if named else ("database_url",), env_file=env_file)
    try:
        adapter = database_adapter(named or loaded.database_url.scheme)
    except UnknownSchemeError as error:
        raise typer.BadParameter(f"no database is called {named!r}. {error}", param_hint="--dialect") from None
    tables = tables_of(loaded.settings)
    for statement in (
        database.ddl(tables, adapter) if after is None else database.migration(tables, adapter, after=after)
    ):
        write_line(f"{statement}\n")


def _versions(tables: Tables) -> dict[str, int]:
    return {part.name: part.version for part in tables.parts}
