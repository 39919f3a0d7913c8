"""The proxy in a thread and event loop of its own, for blocking code and for code whose own loop must not help it.

with threaded_proxy("127.0.0.1", server.port) as proxy:
    proxy.cut()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

from anyio import fail_after
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.faults.proxy import FaultProxy, Lane, Lanes, Traffic

__all__ = ["ThreadedFaultProxy", "threaded_proxy"]


class ThreadedFaultProxy:
    """`FaultProxy` with blocking methods, callable from any thread."""

    def __init__(self, portal: BlockingPortal, proxy: FaultProxy) -> None:
        self._portal = portal
        self._proxy = proxy
        self.host = proxy.host
        self.port = proxy.port

    @property
    def traffic(self) -> Traffic:
        """The counts until now."""
        return self._proxy.traffic

    def until(self, reached: Callable[[Traffic], bool], seconds: float) -> Traffic:
        """Wait until the counts satisfy a condition. Raises TimeoutError."""

        async def wait() -> Traffic:
            with fail_after(seconds):
                return await self._proxy.until(reached)

        return self._portal.call(wait)

    def cut(self) -> int:
        """As `FaultProxy.cut`."""
        return self._portal.call(self._proxy.cut)

    def refuse(self) -> None:
        """As `FaultProxy.refuse`."""
        self._portal.call(self._proxy.refuse)

    def stall(self, lanes: Lanes = "both") -> None:
        """As `FaultProxy.stall`."""
        self._portal.call(self._proxy.stall, lanes)

    def swallow(self, lanes: Lanes = "both") -> None:
        """As `FaultProxy.swallow`."""
        self._portal.call(self._proxy.swallow, lanes)

    def strand(self) -> int:
        """As `FaultProxy.strand`."""
        return self._portal.call(self._proxy.strand)

    def delay(self, seconds: float) -> None:
        """As `FaultProxy.delay`."""
        self._portal.call(self._proxy.delay, seconds)

    def cut_after(self, count: int, lane: Lane) -> None:
        """As `FaultProxy.cut_after`."""
        self._portal.call(self._proxy.cut_after, count, lane)

    def heal(self) -> None:
        """As `FaultProxy.heal`."""
        self._portal.call(self._proxy.heal)


@contextlib.contextmanager
def threaded_proxy(target_host: str, target_port: int) -> Generator[ThreadedFaultProxy, None, None]:
    """A running proxy in a thread of its own."""
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(FaultProxy(target_host, target_port)) as proxy,
    ):
        yield ThreadedFaultProxy(portal, proxy)
