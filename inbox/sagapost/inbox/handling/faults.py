"""What went wrong in users' code, as text that is safe to keep: bounded, printable, without the values of statements.

Three degrees of it: `kind_of` may leave the service, `text_of` may be logged and kept in a row, `traceback_of` is for
the row alone. None of them raises, whatever the exception's own methods do.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator

from sqlalchemy.exc import DBAPIError, StatementError

from sagapost.core.databases import code_of

__all__ = ["clean", "kind_of", "text_of", "traceback_of"]

_TEXT = 2_000
_TRACEBACK = 16_000
_FRAMES = 30
"""Of each exception, the innermost: a recursion without end has a thousand."""
_LINKS = 8
"""Exceptions of a chain, or of a group, that are shown."""


def clean(text: object, limit: int = _TEXT) -> str:
    """Return text as every column, log and event takes it, cut in the middle where it is too long.

    NUL and lone surrogates are replaced. What is no text is made one.
    """
    made = text if isinstance(text, str) else _made(text)
    if len(made) > limit:
        half = limit // 2
        made = f"{made[:half]} [... {len(made) - 2 * half:,} characters ...] {made[-half:]}"
    return made.encode("utf-8", "replace").decode().replace("\x00", "\N{REPLACEMENT CHARACTER}")


def kind_of(error: BaseException) -> str:
    """Return an error's kind: its class and, of a database error, its code. Quotes nothing."""
    code = code_of(error)
    return f"{type(error).__name__} ({code})" if code else type(error).__name__


def text_of(error: BaseException) -> str:
    """Return an error in a line: its class and its text, without the values a statement was given."""
    if isinstance(error, StatementError):
        return clean(f"{kind_of(error)}: {_said_by_the_database(error)}")
    said = _made(error)
    if isinstance(error, BaseExceptionGroup):
        said += f": {', '.join(text_of(each) for each in error.exceptions[:_LINKS])}"
    return clean(f"{kind_of(error)}: {said}" if said else kind_of(error))


def traceback_of(error: BaseException) -> str:
    """Return an error with where it was raised and what led to it, the last last."""
    parts: list[str] = []
    for each in _chain(error):
        frames = "".join(traceback.format_tb(each.__traceback__, limit=-_FRAMES))
        notes = "".join(f"\n{clean(note)}" for note in getattr(each, "__notes__", ()) or ())
        part = f"Traceback (most recent call last):\n{frames}{text_of(each)}{notes}\n"
        if isinstance(each, BaseExceptionGroup):
            part += "".join(f"\n  of which:\n{traceback_of(inner)}" for inner in each.exceptions[:_LINKS])
        parts.append(part)
    return clean("\nwhich led to:\n\n".join(reversed(parts)), _TRACEBACK)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < _LINKS:
        yield current
        seen.add(id(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _said_by_the_database(error: StatementError) -> str:
    """Return what the database says in its first line: the details below it quote what was to be written."""
    if error.orig is None:
        return _made(error).partition("\n")[0]
    if isinstance(error, DBAPIError) and code_of(error).startswith("22"):
        # Data exceptions quote the value in the first line.
        return type(error.orig).__name__
    return _made(error.orig).partition("\n")[0]


def _made(value: object) -> str:
    """Return a value's text; an exception's own methods may do anything."""
    try:
        return str.__str__(str(value))
    except BaseException as error:
        return f"(its text cannot be made: {type(error).__name__})"
