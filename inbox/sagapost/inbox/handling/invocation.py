"""Calling a handler: in a context of its own, on the event loop or in a worker thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from contextvars import Context as Variables
from dataclasses import dataclass
from types import AsyncGeneratorType, GeneratorType
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]  # no type information

from sagapost.core.context import SagaContext, bind
from sagapost.core.errors import HandlerError
from sagapost.inbox.declared.handlers import HandlerFunction

__all__ = ["Isolated", "call_async", "call_in_thread"]

T = TypeVar("T")


class Isolated(Awaitable[T]):
    """Runs a coroutine with context variables of its own, in the task that awaits it.

    The consumer's tasks live for many messages: what a handler sets must not be seen by the next, nor must what was
    set where the consumer was started. A task for each message would do as well, and cost several times as much.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        run, coroutine = Variables().run, self._coroutine
        step: Callable[..., Any] = coroutine.send
        argument: Any = None
        while True:
            try:
                awaited = run(step, argument)
            except StopIteration as done:
                result: T = done.value
                return result
            try:
                argument = yield awaited
                step = coroutine.send
            except GeneratorExit:
                run(coroutine.close)
                raise
            except BaseException as error:
                step, argument = coroutine.throw, error


def call_async(
    function: HandlerFunction,
    payload: object,
    ctx: object,
    saga: SagaContext,
    around: AbstractContextManager[object],
) -> Awaitable[None]:
    """Call an `async def` handler within the saga, and in what is to be around it."""

    async def handle() -> None:
        with bind(saga), around:
            _require_done(await function(payload, ctx))

    return Isolated(handle())


def call_in_thread(
    function: HandlerFunction,
    payload: object,
    ctx: object,
    saga: SagaContext,
    around: AbstractContextManager[object],
    limiter: anyio.CapacityLimiter,
) -> Awaitable[None]:
    """Call a `def` handler in a worker thread, within the saga, and in what is to be around it.

    The thread cannot be interrupted; cancelling waits for it.
    """

    async def handle() -> None:
        with bind(saga), around:
            # The context variables, the saga among them, are carried into the thread.
            ended = await anyio.to_thread.run_sync(_drive, function, payload, ctx, limiter=limiter)
            if ended.error is not None:
                raise ended.error
            _require_done(ended.result)

    return Isolated(handle())


class _Driven(greenlet):  # type: ignore[misc]  # greenlet has no type information
    """A greenlet in which SQLAlchemy's async drivers can be used like synchronous ones."""

    # SQLAlchemy hands an awaitable to the parent of any greenlet that says so (sqlalchemy.util.concurrency).
    __sqlalchemy_greenlet_provider__ = True


@dataclass(slots=True)
class _Ended:
    """How a function in a thread ended. Kept, not raised: threads, futures and greenlets swallow some errors."""

    result: object = None
    error: BaseException | None = None


def _drive(function: HandlerFunction, payload: object, ctx: object) -> _Ended:
    """Run a handler in this thread; what its Session awaits is awaited on the event loop.

    So a `def` handler works on the very connection, and in the very transaction, that holds the dedup key.
    """
    ended = _Ended()

    def run() -> None:
        try:
            ended.result = function(payload, ctx)
        except BaseException as error:
            ended.error = error

    driver = getcurrent()
    driven = _Driven(run, driver)
    driven.gr_context = driver.gr_context
    awaited = driven.switch()
    while not driven.dead:
        try:
            value = anyio.from_thread.run(_wait, awaited)
        except BaseException as error:
            awaited = driven.throw(error)
        else:
            awaited = driven.switch(value)
    return ended


def _require_done(result: object) -> None:
    """Refuse what has not run yet: a coroutine that nobody awaits, the generator that a `yield` has made.

    :raises HandlerError: if the function returned such a thing.
    """
    if result is None or not isinstance(result, Awaitable | GeneratorType | AsyncGeneratorType):
        return
    kind = type(result).__name__
    if isinstance(result, Coroutine):
        # It will never be awaited, which is what the error says.
        result.close()
    raise HandlerError(
        f"The handler returned {kind}, which nothing runs: none of it was done. Make it an `async def` without "
        "`yield` that awaits what it calls, and declare that with @inbox.on(...)."
    )


async def _wait(awaitable: Awaitable[T]) -> T:
    return await awaitable
