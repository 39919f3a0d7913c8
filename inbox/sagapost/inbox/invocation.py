"""Calling a handler: in a context of its own, on the event loop or in a worker thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from contextvars import Context as Variables
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]  # no type information

from sagapost.core.context import SagaContext, bind
from sagapost.inbox.handlers import HandlerFunction

__all__ = ["call_async", "call_in_thread"]

T = TypeVar("T")


class _Isolated(Awaitable[T]):
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
            await function(payload, ctx)

    return _Isolated(handle())


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
            await anyio.to_thread.run_sync(_drive, function, payload, ctx, limiter=limiter)

    return _Isolated(handle())


class _Driven(greenlet):  # type: ignore[misc]  # greenlet has no type information
    """A greenlet in which SQLAlchemy's async drivers can be used like synchronous ones."""

    # SQLAlchemy hands an awaitable to the parent of any greenlet that says so (sqlalchemy.util.concurrency).
    __sqlalchemy_greenlet_provider__ = True


def _drive(function: HandlerFunction, payload: object, ctx: object) -> None:
    """Run a handler in this thread; what its Session awaits is awaited on the event loop.

    So a `def` handler works on the very connection, and in the very transaction, that holds the dedup key.
    """
    driver = getcurrent()
    driven = _Driven(function, driver)
    driven.gr_context = driver.gr_context
    awaited = driven.switch(payload, ctx)
    while not driven.dead:
        try:
            value = anyio.from_thread.run(_wait, awaited)
        except BaseException as error:
            awaited = driven.throw(error)
        else:
            awaited = driven.switch(value)


async def _wait(awaitable: Awaitable[T]) -> T:
    return await awaitable
