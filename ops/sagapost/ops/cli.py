"""The `sagapost` command: errors become one clear text and an exit code, never a bare traceback of ours."""

from __future__ import annotations

import sys
import traceback
from typing import NoReturn

from sagapost.core.errors import MissingExtraError, SagapostError
from sagapost.ops.exit_codes import ExitCode, exit_code_of
from sagapost.ops.masking import Redactor
from sagapost.ops.output import flush

__all__ = ["main"]

_EXTRA = frozenset({"dotenv", "rich", "typer"})


def main() -> NoReturn:
    """Run the command line and exit."""
    try:
        try:
            _run()
        finally:
            flush()
    except SagapostError as error:
        _complain(error)
        sys.exit(exit_code_of(error))
    except KeyboardInterrupt:
        # Ctrl-C before there is anything to drain, or in a command that runs once.
        sys.exit(ExitCode.INTERRUPTED)
    except Exception:
        sys.stderr.write(Redactor()(traceback.format_exc()))
        sys.exit(ExitCode.UNEXPECTED)
    sys.exit(ExitCode.OK)


def _run() -> None:
    try:
        from sagapost.ops.commands import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        raise MissingExtraError(module=missing, extra="cli", purpose="The sagapost command") from error


def _complain(error: SagapostError) -> None:
    """Write an error for a person."""
    sys.stderr.write(f"sagapost: {Redactor()(str(error))}\n")
