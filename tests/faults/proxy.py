"""A TCP proxy that breaks on command: put it between a client and its database or broker.

    async with FaultProxy("127.0.0.1", broker.port) as proxy:
        publisher = await connect(f"amqp://...@{proxy.host}:{proxy.port}/")
        await proxy.cut()

    cut         every connection is reset                      a crash, a load balancer that lost its table
    refuse      nobody is let in, open connections go on       a server that is down
    stall       bytes wait and arrive after `heal`             a network partition that ends
    swallow     bytes are lost, nobody is told                 a peer that lost its power, half-open TCP
    strand      the same for the connections there are         a peer that was replaced, a NAT that forgot
    delay       bytes arrive later                             a distant data centre
    cut_after   reset when so many bytes have passed           a crash at a chosen point, the same in every run

`stall` and `swallow` take a lane: with `"to_client"` the broker gets every publish, and the confirms are lost.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import anyio
from anyio.abc import TaskGroup

from tests.faults.link import Lane, Link, Mode
from tests.faults.sockets import listen, reserve_port

__all__ = ["FaultProxy", "Lane", "Lanes", "Traffic"]

Lanes = Literal["to_target", "to_client", "both"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through so far. Bytes count when they were handed to the receiving side."""

    accepted: int = 0
    open: int = 0
    to_target_bytes: int = 0
    to_client_bytes: int = 0
    swallowed_bytes: int = 0


class FaultProxy:
    """Forwards a port of its own to `target_host:target_port`; starts healthy. For one event loop (else `threaded`).

    The port is kept while connections are refused, and until the end of the context.
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._modes: dict[Lane, Mode] = {"to_target": Mode.FLOW, "to_client": Mode.FLOW}
        self._planned: dict[Lane, int] = {}
        self._delay_seconds = 0.0
        self._traffic = Traffic()
        self._links: set[Link] = set()

    async def __aenter__(self) -> Self:
        self._news = anyio.Event()
        self._holder = reserve_port(self.host)
        self.port = int(self._holder.getsockname()[1])
        self._tasks: TaskGroup = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._door: anyio.CancelScope | None = None
        self._open_door()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        # A failure of the test is not one of our tasks: passed on, it would come out wrapped in an ExceptionGroup.
        ours = kind is None or issubclass(kind, Exception)
        try:
            if not ours:
                return await self._tasks.__aexit__(kind, error, trace)
            await self._tasks.__aexit__(None, None, None)
            return None
        finally:
            self._holder.close()

    @property
    def traffic(self) -> Traffic:
        """The counts until now."""
        return self._traffic

    async def until(self, reached: Callable[[Traffic], bool]) -> Traffic:
        """Wait until the counts satisfy a condition; bound it with `anyio.fail_after`."""
        while not reached(self._traffic):
            await self._news.wait()
        return self._traffic

    async def cut(self) -> int:
        """Reset every connection; returns their number, when all resets are out."""
        return await self._cut(list(self._links))

    async def refuse(self) -> None:
        """Refuse new connections, as when nothing listened there; in force on return."""
        if self._door is not None:
            self._door.cancel()
            self._door = None
            await self._door_closed.wait()

    def stall(self, lanes: Lanes = "both") -> None:
        """Let nothing through, and lose nothing: connections are accepted, bytes wait for `heal`."""
        self._set(lanes, Mode.HOLD)

    def swallow(self, lanes: Lanes = "both") -> None:
        """Take every byte and deliver none. `heal` resets connections that lost some by then."""
        self._set(lanes, Mode.SWALLOW)

    def strand(self) -> int:
        """Leave every open connection half-open for good; new ones are carried. Returns their number."""
        for link in self._links:
            link.strand()
        self._announce()
        return len(self._links)

    def delay(self, seconds: float) -> None:
        """Deliver each chunk that arrives from now on so much later; order is kept, throughput too."""
        self._delay_seconds = seconds

    def cut_after(self, count: int, lane: Lane) -> None:
        """Reset every connection as soon as `count` more bytes (at least 1) have passed in one direction, once."""
        if count < 1:
            raise ValueError("a cut after no bytes at all is `await cut()`")
        self._planned[lane] = count

    async def heal(self) -> None:
        """Forward again as at the start: what was stalled flows on, what lost bytes is reset, the door is open."""
        self._planned.clear()
        self._delay_seconds = 0.0
        self._set("both", Mode.FLOW)
        await self._cut([link for link in self._links if link.damaged])
        if self._door is None:
            self._open_door()

    # What the links ask (`Rules`).

    def mode(self, lane: Lane) -> Mode:
        """What to do with the bytes of a lane now."""
        return self._modes[lane]

    async def changed(self) -> None:
        """Wait for the next news."""
        await self._news.wait()

    def delay_seconds(self) -> float:
        """How late each chunk arrives."""
        return self._delay_seconds

    def allowance(self, lane: Lane, wanted: int) -> int:
        """How many of the wanted bytes may pass before the planned cut."""
        return min(wanted, self._planned.get(lane, wanted))

    def passed(self, lane: Lane, count: int) -> None:
        """Count bytes, and cut when the plan says so."""
        if lane == "to_target":
            self._count(to_target_bytes=count)
        else:
            self._count(to_client_bytes=count)
        if lane in self._planned:
            self._planned[lane] -= count
            if not self._planned[lane]:
                del self._planned[lane]
                for link in self._links:
                    link.cut()

    def swallowed(self, count: int) -> None:
        """Count lost bytes."""
        self._count(swallowed_bytes=count)

    def _set(self, lanes: Lanes, mode: Mode) -> None:
        for lane in self._modes:
            if lanes in {lane, "both"}:
                self._modes[lane] = mode
        self._announce()

    async def _cut(self, links: list[Link]) -> int:
        for link in links:
            link.cut()
        for link in links:
            await link.closed.wait()
        return len(links)

    def _open_door(self) -> None:
        # Listening starts here and not in the task: who has the proxy may connect at once.
        listener = listen(self.host, self.port)
        self._door = anyio.CancelScope()
        self._door_closed = anyio.Event()
        self._tasks.start_soon(self._accept, listener, self._door, self._door_closed)

    async def _accept(self, listener: socket.socket, door: anyio.CancelScope, closed: anyio.Event) -> None:
        try:
            with door:
                while True:
                    await anyio.wait_readable(listener)
                    try:
                        client, _ = listener.accept()
                    except OSError:  # gone again before we came to it
                        continue
                    client.setblocking(False)
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    link = Link(client, self)
                    self._links.add(link)
                    self._count(accepted=1, open=1)
                    self._tasks.start_soon(self._run, link)
        finally:
            listener.close()
            closed.set()

    async def _run(self, link: Link) -> None:
        try:
            await link.run(*self._target)
        finally:
            self._links.discard(link)
            self._count(open=-1)

    def _count(self, **by: int) -> None:
        self._traffic = replace(self._traffic, **{name: getattr(self._traffic, name) + n for name, n in by.items()})
        self._announce()

    def _announce(self) -> None:
        self._news.set()
        self._news = anyio.Event()
