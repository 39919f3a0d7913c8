"""One proxied connection: two lanes of bytes, each of which can flow, be held back, or be swallowed."""

from __future__ import annotations

import contextlib
import enum
import socket
from typing import Literal, Protocol

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tests.faults.sockets import abort, connect, receive, send_some

__all__ = ["Lane", "Link", "Mode", "Rules"]

Lane = Literal["to_target", "to_client"]

_CHUNKS_IN_FLIGHT = 256


class Mode(enum.Enum):
    """What happens to the bytes of one lane."""

    FLOW = "flow"
    HOLD = "hold"
    SWALLOW = "swallow"


class Rules(Protocol):
    """What a link asks its proxy. All may change at any time."""

    def mode(self, lane: Lane) -> Mode:
        """What to do with the bytes of a lane now."""
        ...

    async def changed(self) -> None:
        """Wait for the next change of any rule."""
        ...

    def delay_seconds(self) -> float:
        """How late each chunk arrives."""
        ...

    def allowance(self, lane: Lane, wanted: int) -> int:
        """How many of the wanted bytes may pass before the next planned cut."""
        ...

    def passed(self, lane: Lane, count: int) -> None:
        """So many bytes went through."""
        ...

    def swallowed(self, count: int) -> None:
        """So many bytes were lost."""
        ...


class Link:
    """Carries the bytes of one client to the target and back, until either side ends or `cut` is called."""

    def __init__(self, client: socket.socket, rules: Rules) -> None:
        self._client = client
        self._rules = rules
        self._scope = anyio.CancelScope()
        self._reset = False
        self._stranded = False
        self.closed = anyio.Event()
        self.damaged = False
        """Bytes are missing in its middle, so it must not go on: TCP never delivers a stream with a hole."""

    def cut(self) -> None:
        """End with a reset on both sides; `closed` tells when that is done."""
        self._reset = True
        self._scope.cancel()

    def strand(self) -> None:
        """From now on lose everything, both ways and for good, whatever the rules say."""
        self._stranded = True
        self.damaged = True

    def _mode(self, lane: Lane) -> Mode:
        return Mode.SWALLOW if self._stranded else self._rules.mode(lane)

    async def run(self, host: str, port: int) -> None:
        """Carry until the end; leaves both sockets closed whatever happens."""
        sides = [self._client]
        try:
            with self._scope:
                await self._wait_for_way()
                target = await connect(host, port)
                sides.append(target)
                async with anyio.create_task_group() as lanes:
                    lanes.start_soon(self._carry, self._client, target, "to_target")
                    lanes.start_soon(self._carry, target, self._client, "to_client")
        except* OSError:
            # One side is gone or never came; the other learns it the same way.
            self._reset = True
        finally:
            for side in sides:
                if self._reset:
                    abort(side)
                else:
                    side.close()
            self.closed.set()

    async def _wait_for_way(self) -> None:
        while self._mode("to_target") is Mode.HOLD:
            await self._rules.changed()
        while self._mode("to_target") is Mode.SWALLOW:
            self.damaged = True
            lost = await receive(self._client)
            self._rules.swallowed(len(lost))
            if not lost:
                await anyio.sleep_forever()

    async def _carry(self, source: socket.socket, sink: socket.socket, lane: Lane) -> None:
        chunks, arriving = anyio.create_memory_object_stream[tuple[float, bytes]](_CHUNKS_IN_FLIGHT)
        async with anyio.create_task_group() as ends:
            ends.start_soon(self._take, source, lane, chunks)
            ends.start_soon(self._hand_over, sink, lane, arriving)

    async def _take(
        self, source: socket.socket, lane: Lane, chunks: MemoryObjectSendStream[tuple[float, bytes]]
    ) -> None:
        async with chunks:
            while True:
                await self._while_held(lane)
                data = await self._receive(source, lane)
                if self._mode(lane) is Mode.SWALLOW:
                    await self._lose(data)
                elif data:
                    await chunks.send((anyio.current_time() + self._rules.delay_seconds(), data))
                else:
                    return

    async def _receive(self, source: socket.socket, lane: Lane) -> bytes:
        try:
            return await receive(source)
        except OSError:
            # Behind a lane that does not flow nobody may learn that this side is gone.
            if self._mode(lane) is Mode.FLOW:
                raise
            return b""

    async def _hand_over(
        self, sink: socket.socket, lane: Lane, chunks: MemoryObjectReceiveStream[tuple[float, bytes]]
    ) -> None:
        async with chunks:
            async for due, data in chunks:
                await anyio.sleep_until(due)
                await self._send(sink, lane, memoryview(data))
        await self._while_held(lane)
        if self._mode(lane) is Mode.SWALLOW:
            await self._lose(b"")
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    async def _send(self, sink: socket.socket, lane: Lane, data: memoryview) -> None:
        while data:
            # Asked before every single send: once `stall` returned, not one byte more may arrive.
            await self._while_held(lane)
            if self._mode(lane) is Mode.SWALLOW:
                await self._lose(data)
                return
            sent = send_some(sink, data[: self._rules.allowance(lane, len(data))])
            if sent:
                data = data[sent:]
                self._rules.passed(lane, sent)
                await anyio.lowlevel.checkpoint()
            else:
                await anyio.wait_writable(sink)

    async def _while_held(self, lane: Lane) -> None:
        while self._mode(lane) is Mode.HOLD:
            await self._rules.changed()

    async def _lose(self, data: bytes | memoryview) -> None:
        self.damaged = True
        self._rules.swallowed(len(data))
        if not data:
            # The end of the stream is lost as well: the link stays half open until it is cut.
            await anyio.sleep_forever()
