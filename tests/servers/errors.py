"""What can go wrong with a server, as exceptions that tell the reader what to look at.

ServerError
├── ServerFailedError         a server was there but did not do what it was told; carries the end of its log
└── ServerMissingError    this machine has no such server; says what to install or set
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["ServerError", "ServerFailedError", "ServerMissingError"]

# The reports in which Erlang wraps the line that says what is wrong are long.
_LOG_TAIL_LINES = 100


class ServerError(Exception):
    """Root of all errors of `tests.servers`."""


class ServerFailedError(ServerError):
    """A server did not start, stop or answer; the message ends with the last lines of its log."""

    def __init__(self, what: str, log: Path | None = None) -> None:
        self.what = what
        self.log_tail = _tail(log)
        super().__init__(f"{what}\n--- end of its log ---\n{self.log_tail}" if self.log_tail else what)


class ServerMissingError(ServerError):
    """This machine offers no such server."""


def _tail(log: Path | None) -> str:
    if log is None:
        return ""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_LOG_TAIL_LINES:])
