"""`sagapost relay`: publish what is committed to the outbox."""

from __future__ import annotations

import typer

from sagapost.core.errors import ConfigurationError
from sagapost.ops.commands.options import EnvFile, FailFast
from sagapost.ops.composition import Composition
from sagapost.ops.process import Plan, run_process
from sagapost.ops.relaying import outbox_there, relays

__all__ = ["relay"]


def relay(env_file: EnvFile = None, fail_fast: FailFast = None) -> None:
    """Publish the events of SAGAPOST_DATABASE_URL's outbox to SAGAPOST_BROKER_URL, until stopped.

    Run as many as you like: they share the work. SIGTERM or Ctrl-C drains, a second one stops at once.
    """
    raise typer.Exit(run_process(_plan, env_file=env_file, fail_fast=fail_fast))


def _plan(composition: Composition) -> Plan:
    if not composition.crosses_processes:
        raise ConfigurationError(
            "SAGAPOST_BROKER_URL names the memory broker, which lives in one process: this relay could reach nobody. "
            "Use `sagapost consume --with-relay module:service`, or a broker such as "
            "SAGAPOST_BROKER_URL=amqp://orders:password@localhost:5672/"
        )
    return Plan([outbox_there(composition), composition.broker_there()], relays(composition))
