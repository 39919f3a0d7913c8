"""What an error shows to whoever reads the log."""

from __future__ import annotations

__all__ = ["reasons"]


def reasons(error: BaseException) -> str:
    """Return everything an error shows, with its causes, as a log would."""
    shown = ""
    cause: BaseException | None = error
    seen: set[int] = set()
    # Drivers raise one exception in several places, so a chain may lead back into itself.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        shown += f"{cause} {cause!r} "
        cause = cause.__cause__ or cause.__context__
    return shown
