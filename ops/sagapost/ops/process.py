"""From the command line to a running process: settings, logs, event loop, supervision, exit code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sagapost.core.errors import SagapostError
from sagapost.ops.composition import Composition
from sagapost.ops.daemon import Daemon, Requirement, Worker, run_daemon
from sagapost.ops.exit_codes import ExitCode, exit_code_of
from sagapost.ops.logs import configure_logging
from sagapost.ops.registry import brokers, database_adapter
from sagapost.ops.settings import InvalidSettingsError, LoadedSettings, load_settings

__all__ = ["Plan", "run_process"]

_log = logging.getLogger("sagapost.ops")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a process waits for, and what it runs."""

    requirements: Sequence[Requirement]
    workers: Sequence[Worker]


def run_process(
    plan: Callable[[Composition], Plan], *, env_file: Path | None = None, fail_fast: bool | None = None
) -> ExitCode:
    """Run what `plan` asks for until a signal; return the exit code. Every failure ends as a log line."""
    # What is wrong with the settings must be readable too, by whoever reads the rest.
    early = os.environ.get("SAGAPOST_LOG_FORMAT", "").strip().lower()
    configure_logging(format="human" if early == "human" else "json" if early == "json" else "auto")
    try:
        loaded = load_settings(
            required=("database_url", "broker_url"), env_file=env_file, overrides={"fail_fast": fail_fast}
        )
        settings = loaded.settings.process
        configure_logging(
            format=settings.log_format,
            level=settings.log_level,
            secrets=loaded.secrets(),
            loggers={
                **database_adapter(loaded.database_url.scheme).loggers,
                **brokers.find(loaded.broker_url.scheme).loggers,
            },
        )
        for hint in loaded.hints:
            _log.warning("%s", hint)
        return run_daemon(partial(_serve, loaded, plan))
    except InvalidSettingsError as error:
        for problem in error.problems:
            _log.critical("%s", problem, extra={"variable": problem.variable})
        for hint in error.hints:
            _log.warning("%s", hint)
        return ExitCode.CONFIGURATION
    except SagapostError as error:
        _log.critical("%s", error)
        return exit_code_of(error)
    except Exception:
        _log.critical("unexpected error", exc_info=True)
        return ExitCode.UNEXPECTED


async def _serve(loaded: LoadedSettings, plan: Callable[[Composition], Plan]) -> ExitCode:
    settings = loaded.settings.process
    async with Composition(loaded) as composition:
        planned = plan(composition)
        daemon = Daemon(
            planned.workers,
            planned.requirements,
            retry=settings.start_retry,
            fail_fast=settings.fail_fast,
        )
        return await daemon.run()
