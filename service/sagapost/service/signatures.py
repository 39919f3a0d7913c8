"""Does a handler fit what it is declared for? Asked when it is declared, for what no type checker has looked at."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.context import SyncContext
from sagapost.inbox.declared.handlers import is_async, name_of
from sagapost.sagas.context import StepContext
from sagapost.sagas.deadlines import Deadline

__all__ = ["check_deadlines", "check_options", "check_signature", "require_deadlines"]


def check_options(given: Iterable[str], known: Iterable[str], *, where: str) -> None:
    """Refuse keyword arguments that mean nothing.

    :raises ConfigurationError: naming the one, and what was perhaps meant.
    """
    names = sorted(known)
    for name in sorted(set(given) - set(names)):
        similar = difflib.get_close_matches(name, names, n=1)
        meant = f"Did you mean {similar[0]}=?" if similar else f"It takes {', '.join(f'{each}=' for each in names)}."
        raise ConfigurationError(f"{where} has no option {name}=. {meant}")


def require_deadlines(given: Iterable[object], *, where: str) -> None:
    """Refuse what is no deadline, such as its name.

    :raises ConfigurationError: saying how one is declared.
    """
    for each in given:
        if not isinstance(each, Deadline):
            raise ConfigurationError(
                f"{where} was given {each!r} for a deadline. Declare it once, and name that object: "
                "PAYMENT_DUE = Deadline('payment', OrderOverdue, after=timedelta(hours=1))."
            )


def check_deadlines(set_: Iterable[Deadline[Any]], cancelled: Iterable[Deadline[Any]], *, where: str) -> None:
    """Compare the deadlines that a service takes back with those that it sets: a misspelt one would never be found.

    One that is set elsewhere, by another name, is let pass.

    :raises ConfigurationError: naming the one, and what was perhaps meant.
    """
    known = {deadline.name: deadline for deadline in set_}
    for deadline in cancelled:
        if deadline == known.get(deadline.name, deadline):
            similar = [] if deadline.name in known else difflib.get_close_matches(deadline.name, known, n=1)
            if not similar:
                continue
            raise ConfigurationError(
                f"A handler of {where} cancels the deadline {deadline.name!r}, which no handler sets. "
                f"Did you mean {similar[0]!r}? Declare it once, and name that object in both places."
            )
        raise ConfigurationError(
            f"Two deadlines of {where} are named {deadline.name!r}, with another event or another time. "
            "Declare it once, and name that object in both places."
        )


def check_signature(function: Callable[..., Any], events: Sequence[type]) -> None:
    """Compare a handler's annotations with the events it is declared for, and with the context it will be given.

    What is not annotated, or cannot be looked up (names that are imported for type checkers only), is let pass.

    :raises ConfigurationError: if it cannot be called, or says that it takes something else.
    """
    asynchronous = is_async(function)
    taken = _taken(function)
    if taken is None:
        return
    event, context = taken
    name = name_of(function)
    for each in events:
        if not _accepts(event, each):
            raise ConfigurationError(
                f"{name} is declared for {each.__qualname__} and says that it takes {_shown(event)}. "
                f"Declare it with .on({_shown(event)}), or annotate its first parameter with {each.__qualname__}."
            )
    given, other = (StepContext, SyncContext) if asynchronous else (SyncContext, StepContext)
    if not _accepts(context, given):
        kind = "an `async def`" if asynchronous else "a `def`"
        swapped = "make it a `def`" if asynchronous else "make it an `async def`"
        remedy = f", or {swapped}" if _accepts(context, other) else ""
        raise ConfigurationError(
            f"{name} is {kind}, which is given a {given.__name__}, and says that it takes {_shown(context)}. "
            f"Annotate its second parameter with {given.__name__}{remedy}."
        )


def _taken(function: Callable[..., Any]) -> tuple[Any, Any] | None:
    """Return the annotations of the two positional parameters; None where they cannot be told."""
    try:
        parameters = [
            each
            for each in inspect.signature(function).parameters.values()
            if each.kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
        ]
        hints = get_type_hints(function if inspect.isroutine(function) else type(function).__call__)
    except (NameError, TypeError, AttributeError, ValueError):
        return None
    if len(parameters) < 2:
        return None
    return hints.get(parameters[0].name, Any), hints.get(parameters[1].name, Any)


def _accepts(annotation: Any, given: type) -> bool:
    """Return whether a value of the class `given` may be passed where this is annotated; True in doubt."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return any(_accepts(each, given) for each in get_args(annotation))
    annotation = get_origin(annotation) or annotation
    if not isinstance(annotation, type):
        return True
    try:
        return issubclass(given, annotation)
    except TypeError:
        # A protocol with data members, and whatever else cannot be asked.
        return True


def _shown(annotation: Any) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)
