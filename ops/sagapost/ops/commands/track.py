"""`sagapost track`: fold every event into the tracker's database, and act on what is late or stuck."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sagapost.core.errors import ConfigurationError
from sagapost.ops.commands.options import EnvFile, FailFast
from sagapost.ops.composition import Composition
from sagapost.ops.process import Plan, run_process
from sagapost.ops.relaying import outbox_there, relays
from sagapost.ops.rules import read_rules
from sagapost.ops.tracking import trackers
from sagapost.sagas.choreography import Choreography, read_manifest

__all__ = ["track"]


def track(
    manifests: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MANIFEST...", help="Manifest files, one for each service.", show_default=False),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(help="Field of payloads by which sagas can be found, e.g. order_id.", show_default=False),
    ] = None,
    end: Annotated[
        list[str] | None,
        typer.Option(help="Event type after which a saga is over, beside those of the manifests.", show_default=False),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="TOML file of rules for corrective actions.", show_default=False)
    ] = None,
    queue: Annotated[str, typer.Option(help="The tracker's queue; bound to every event.")] = "sagapost-tracker",
    env_file: EnvFile = None,
    fail_fast: FailFast = None,
) -> None:
    """Consume every event on SAGAPOST_BROKER_URL and keep where each saga is in SAGAPOST_DATABASE_URL, until stopped.

    The database is the tracker's own; `sagapost db upgrade` makes its tables. A relay for the events of corrective
    actions runs in the same process. SIGTERM or Ctrl-C drains, a second one stops at once.
    """

    def plan(composition: Composition) -> Plan:
        if not composition.crosses_processes:
            raise ConfigurationError(
                "SAGAPOST_BROKER_URL names the memory broker, which lives in one process: a tracker would get "
                "nobody. Use a broker such as SAGAPOST_BROKER_URL=amqp://tracker:password@localhost:5672/"
            )
        choreography = Choreography(read_manifest(path) for path in manifests) if manifests else None
        requirements, workers = trackers(
            composition,
            choreography,
            keys=tuple(key or ()),
            ends=tuple(end or ()),
            rules=read_rules(rules) if rules is not None else (),
            queue=queue,
        )
        return Plan(
            [outbox_there(composition), *requirements, composition.broker_there()], [*workers, *relays(composition)]
        )

    raise typer.Exit(run_process(plan, env_file=env_file, fail_fast=fail_fast))
