"""Handlers as declared: which events they take, what they emit, and what is called for a given event."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.outcomes import LastResort
from sagapost.inbox.declared.settings import RetryPolicy

__all__ = ["Call", "FailureRule", "Handler", "HandlerFunction", "Unit", "Upcaster", "is_async", "topic_regex"]

HandlerFunction: TypeAlias = Callable[..., Any]
"""`async def handler(event, ctx: Context)`, or `def handler(event, ctx: SyncContext)` for a worker thread."""


@dataclass(frozen=True, slots=True)
class FailureRule:
    """What happens when a handler raises this exception, or one derived from it."""

    exception: type[Exception]
    policy: RetryPolicy | None
    """None: reject; the message becomes a dead letter at once."""


@dataclass(frozen=True, slots=True)
class Handler:
    """One decorated function with everything that was declared about it."""

    function: HandlerFunction
    name: str
    asynchronous: bool
    accepts: Mapping[str, type]
    """Event type -> the class its data is decoded as."""
    patterns: Mapping[str, type]
    """Topic pattern -> the class. `*` is one dot-separated word, `#` any number of them."""
    topics: frozenset[str]
    """What the queue is bound to for this handler."""
    emits: frozenset[str]
    retry: RetryPolicy | None
    rules: tuple[FailureRule, ...] = field(default=())
    on_exhausted: LastResort | None = None
    transaction: str = ""
    """Name of the transaction it runs in; empty: that of all handlers without a name."""

    def policy_for(self, error: BaseException, default: RetryPolicy) -> RetryPolicy | None:
        """Return how a failure is retried; the most derived of the declared exceptions decides. None: never."""
        for cls in type(error).__mro__:
            for rule in self.rules:
                if rule.exception is cls:
                    return rule.policy
        return self.retry if self.retry is not None else default


@dataclass(frozen=True, slots=True)
class Upcaster:
    """Turns the payload of an older event type into that of a newer one."""

    from_type: str
    from_class: type
    to_type: str
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A handler to be called for an event type: decode as `payload`, convert, call."""

    handler: Handler
    payload: type
    upcasts: tuple[Upcaster, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """What is called for an event in one transaction, under one dedup key: all of it takes effect, or nothing does."""

    transaction: str
    """Empty: that of the handlers without a name."""
    calls: tuple[Call, ...]


def is_async(function: HandlerFunction) -> bool:
    """Return whether a handler is asynchronous.

    :raises ConfigurationError: if it is no function of two positional arguments, or a generator.
    """
    inner = _unwrapped(function)
    called = inner if inspect.isroutine(inner) else getattr(inner, "__call__", inner)  # noqa: B004 its own code is meant
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigurationError(f"{name_of(function)} is a generator. A handler is a plain `def` or `async def`.")
    try:
        inspect.signature(function).bind(object(), object())
    except TypeError as error:
        raise ConfigurationError(
            f"{name_of(function)} cannot be called as handler(event, ctx): {error}. Give it two positional arguments."
        ) from None
    return inspect.iscoroutinefunction(called)


def _unwrapped(function: HandlerFunction) -> HandlerFunction:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def name_of(function: HandlerFunction) -> str:
    """Return the name a handler is known by in logs and maps."""
    function = _unwrapped(function)
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def topic_regex(pattern: str) -> re.Pattern[str]:
    """Compile a topic pattern: `*` is exactly one dot-separated word, `#` zero or more."""
    out = ""
    for index, word in enumerate(pattern.split(".")):
        dot = r"\." if index else ""
        if word == "#":
            # With its own dot inside the group, so that "a.#" also takes "a", and "#.a" also "a".
            out += rf"(?:{dot}[^.]*(?:\.[^.]*)*)?"
        else:
            out += dot + ("[^.]*" if word == "*" else re.escape(word))
    if pattern.startswith("#."):
        # The dot that follows a leading "#" belongs to it: without words there is none.
        rest = topic_regex(pattern[2:]).pattern
        return re.compile(rf"(?:[^.]*(?:\.[^.]*)*\.)?(?:{rest})")
    return re.compile(out)
