"""The steps of an island as declared: command, answers, undoing, tries, deadline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, get_type_hints

from sagapost.core.errors import ConfigurationError
from sagapost.core.naming import event_type_of
from sagapost.inbox.declared.settings import RetryPolicy

__all__ = ["Build", "IslandStep", "OnReply", "sent_by", "types_of"]

Build: TypeAlias = Callable[[Any], Any]
"""``def pick(state: Fulfilment) -> PickItems``: makes a command from the run's state."""

OnReply: TypeAlias = Callable[[Any, Any], Any]
"""``def picked(state: Fulfilment, reply: ItemsPicked) -> None``: notes in the state what the answer says."""

_B = TypeVar("_B", bound=Build)
_R = TypeVar("_R", bound=OnReply)

ONCE = RetryPolicy(quick=0, attempts=1)


@dataclass(eq=False, slots=True)
class IslandStep:
    """One step. Made by `Island.step`; further parts are added with its decorators."""

    name: str
    build: Build
    command: str
    """Event type of the command."""
    stage: int
    position: int
    replies: tuple[str, ...]
    failures: tuple[str, ...]
    retry_on: tuple[str, ...]
    retry: RetryPolicy
    deadline: timedelta | None
    when: Callable[[Any], bool] | None
    pivot: bool
    escalate: bool
    handle: Callable[[Iterable[type]], None]
    """Lets the inbox handle further events."""
    note: OnReply | None = field(default=None)
    undo: Build | None = field(default=None)
    undo_command: str | None = field(default=None)
    undone: tuple[str, ...] = field(default=())

    def on_reply(self, function: _R) -> _R:
        """Call the decorated ``def function(state, reply)`` when the step is done, before the next one begins.

        It may change the state in place, or return another one. Pure: no input or output.
        """
        self.note = function
        return function

    def compensation(self, *, undone: type | Iterable[type] = ()) -> Callable[[_B], _B]:
        """Undo the step with the command that the decorated ``def function(state)`` returns.

        :param undone: the answer that is waited for, with the step's own deadline and tries, before older steps are
            undone. Without one, it counts as undone as soon as the command is committed to the outbox.
        """
        classes = (undone,) if isinstance(undone, type) else tuple(undone)

        def declare(function: _B) -> _B:
            self.undo = function
            self.undo_command = event_type_of(sent_by(function))
            self.undone = types_of(classes)
            self.handle(classes)
            return function

        return declare


def types_of(classes: Iterable[type]) -> tuple[str, ...]:
    """Return the event types of classes."""
    return tuple(event_type_of(cls) for cls in classes)


def sent_by(function: Callable[..., Any], takes: tuple[str, ...] = ("state",)) -> type:
    """Return the class of what a function builds, from its annotation.

    :raises ConfigurationError: if it takes other arguments, or does not say what it returns.
    """
    name = getattr(function, "__qualname__", repr(function))
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"{name} is an `async def`. It makes a command from the state and does nothing else.")
    try:
        inspect.signature(function).bind(*takes)
        hints = get_type_hints(function)
    except (TypeError, NameError) as error:
        raise ConfigurationError(f"{name} cannot be called as {name}({', '.join(takes)}), or read: {error}.") from None
    returned = hints.get("return")
    if not isinstance(returned, type):
        raise ConfigurationError(
            f"{name} does not say what it sends. Annotate it with the command's class: def {name}(state) -> PickItems."
        )
    return returned
