"""What an error shows to whoever reads the log."""

from __future__ import annotations

__all__ = ["reasons"]


def reasons(error: BaseException) -> str:
    """Return everything an error shows, with its causes, as a log would."""
    shown = ""
    cause: BaseException | None = error
    while cause is not None:
        shown += f"{cause} {cause!r} "
        cause = cause.__cause__ or cause.__context__
    return shown
