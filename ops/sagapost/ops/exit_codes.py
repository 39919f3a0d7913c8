"""What a `sagapost` process tells the one that started it when it ends."""

from __future__ import annotations

import signal
from enum import IntEnum

from sagapost.core.errors import (
    BrokerRefusedError,
    BrokerUnavailableError,
    ConfigurationError,
    ConflictError,
    NotFoundError,
    SchemaError,
    StoreRefusedError,
    StoreUnavailableError,
)

__all__ = ["ExitCode", "exit_code_of"]


class ExitCode(IntEnum):
    """Exit codes of every command; a supervisor may decide by them whether starting again can help."""

    OK = 0
    """Done; for `relay` and `consume`: asked to stop, and everything in flight was settled within the budget."""
    UNEXPECTED = 1
    """An unexpected error; the log holds the traceback. Starting again may help."""
    CONFIGURATION = 2
    """A setting, an argument, a declared queue or an optional package is wrong or missing; a person must act."""
    REFUSED = 3
    """The database or the broker was reached and said no: credentials, permissions, no such database or virtual host.
    A person must act."""
    SCHEMA = 4
    """The database lacks sagapost's tables or has those of another version; run `sagapost db upgrade`."""
    UNAVAILABLE = 5
    """The database or the broker cannot be reached, and this command does not wait for it (`--fail-fast`, or a
    command that runs once). Starting again later helps."""
    DRAIN_EXCEEDED = 6
    """Asked to stop, but work was still in flight when the budget ended, or the database went away. Nothing is lost:
    it is published or delivered again, under the same ids."""
    NOT_FOUND = 7
    """What was named (an event, a parked message, a task, a saga, an inbox) is not there."""
    CONFLICT = 8
    """What was decided cannot be done: the thing is in another state, perhaps since somebody else was first. Nothing
    was changed."""
    UNWELL = 9
    """`sagapost status --check` and `sagapost doctor`: something is not well, and the output says what. An
    unreachable database is 5."""
    INTERRUPTED = 128 + signal.SIGINT
    """A second signal arrived while draining, and it was SIGINT (Ctrl-C): stopped at once. As after `DRAIN_EXCEEDED`,
    nothing is lost. Also Ctrl-C in a command that runs once."""
    TERMINATED = 128 + signal.SIGTERM
    """A second signal arrived while draining, and it was SIGTERM: stopped at once. As after `DRAIN_EXCEEDED`, nothing
    is lost."""


_BY_ERROR: tuple[tuple[type[Exception], ExitCode], ...] = (
    (ConfigurationError, ExitCode.CONFIGURATION),
    (NotFoundError, ExitCode.NOT_FOUND),
    (ConflictError, ExitCode.CONFLICT),
    (SchemaError, ExitCode.SCHEMA),
    (StoreRefusedError, ExitCode.REFUSED),
    (BrokerRefusedError, ExitCode.REFUSED),
    (StoreUnavailableError, ExitCode.UNAVAILABLE),
    (BrokerUnavailableError, ExitCode.UNAVAILABLE),
)


# An unexpected failure first; among the others those that starting again cannot help.
_GRAVEST_FIRST = (
    ExitCode.UNEXPECTED,
    ExitCode.CONFIGURATION,
    ExitCode.SCHEMA,
    ExitCode.REFUSED,
    ExitCode.NOT_FOUND,
    ExitCode.CONFLICT,
    ExitCode.UNAVAILABLE,
)


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code for an error that ends a command; of a group, that of the error a person must look at."""
    if isinstance(error, BaseExceptionGroup):
        codes = {exit_code_of(member) for member in error.exceptions}
        return next(code for code in _GRAVEST_FIRST if code in codes)
    for kind, code in _BY_ERROR:
        if isinstance(error, kind):
            return code
    return ExitCode.UNEXPECTED
