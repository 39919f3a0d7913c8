"""The fault proxy does to a connection what it is told, and nothing else."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncGenerator, Generator

import anyio
import anyio.abc
import pytest

from tests.faults.proxy import FaultProxy
from tests.faults.threaded import threaded_proxy

_SECONDS = 10
_NOTHING_SECONDS = 0.1


@contextlib.asynccontextmanager
async def _echo() -> AsyncGenerator[int, None]:
    async def serve(client: anyio.abc.SocketStream) -> None:
        async with client:
            with contextlib.suppress(anyio.BrokenResourceError):
                async for data in client:
                    await client.send(data)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield int(listener.extra(anyio.abc.SocketAttribute.local_port))
        tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _proxied() -> AsyncGenerator[FaultProxy, None]:
    with anyio.fail_after(_SECONDS):
        async with _echo() as port, FaultProxy("127.0.0.1", port) as proxy:
            yield proxy


async def _echoed(client: anyio.abc.SocketStream, data: bytes) -> bytes:
    await client.send(data)
    return await _exactly(client, len(data))


async def _exactly(client: anyio.abc.SocketStream, count: int) -> bytes:
    got = b""
    while len(got) < count:
        got += await client.receive(count - len(got))
    return got


async def _hears_nothing(client: anyio.abc.SocketStream) -> bool:
    with anyio.move_on_after(_NOTHING_SECONDS):
        await client.receive()
        return False
    return True


async def test_forwards_both_ways_and_counts() -> None:
    """A healthy proxy changes no byte of a transfer larger than any buffer, and counts each byte once."""
    data = bytes(range(256)) * 40_000
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, data)
            assert await _exactly(client, len(data)) == data
        traffic = await proxy.until(lambda so_far: so_far.to_client_bytes == len(data))
        assert (traffic.accepted, traffic.open, traffic.to_target_bytes) == (1, 1, len(data))


async def test_end_of_stream_passes() -> None:
    """When the client says it is done, the target learns it and its own end comes back: no reset is made up."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as client:
        await client.send(b"last words")
        await client.send_eof()
        assert await _exactly(client, 10) == b"last words"
        with pytest.raises(anyio.EndOfStream):
            await client.receive()
        await proxy.until(lambda so_far: so_far.open == 0)


async def test_cut_resets_every_connection() -> None:
    """`cut` resets all open connections, tells how many, and new ones work."""
    async with _proxied() as proxy:
        clients = [await anyio.connect_tcp(proxy.host, proxy.port) for _ in range(3)]
        for client in clients:
            assert await _echoed(client, b"hello") == b"hello"
        assert await proxy.cut() == 3
        assert proxy.traffic.open == 0
        for client in clients:
            async with client:
                with pytest.raises(anyio.BrokenResourceError) as broken:
                    await client.receive()
                assert isinstance(broken.value.__cause__, ConnectionResetError)
        async with await anyio.connect_tcp(proxy.host, proxy.port) as client:
            assert await _echoed(client, b"again") == b"again"


async def test_refuse_and_heal() -> None:
    """While refusing, new connections fail at once and open ones work; after `heal` the same port lets in again."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as old:
        assert await _echoed(old, b"before") == b"before"
        await proxy.refuse()
        for _ in range(2):
            with pytest.raises(OSError):
                await anyio.connect_tcp(proxy.host, proxy.port)
        assert await _echoed(old, b"during") == b"during"
        await proxy.heal()
        async with await anyio.connect_tcp(proxy.host, proxy.port) as new:
            assert await _echoed(new, b"after") == b"after"


async def test_stall_loses_nothing() -> None:
    """What is sent during a stall arrives after it, in order; also on connections opened meanwhile."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as old:
        assert await _echoed(old, b"1") == b"1"
        proxy.stall()
        before = proxy.traffic
        async with await anyio.connect_tcp(proxy.host, proxy.port) as new:
            await old.send(b"23")
            await new.send(b"45")
            assert await _hears_nothing(old)
            assert await _hears_nothing(new)
            assert proxy.traffic.to_target_bytes == before.to_target_bytes
            await proxy.heal()
            assert await _exactly(old, 2) == b"23"
            assert await _exactly(new, 2) == b"45"
        assert proxy.traffic.swallowed_bytes == 0


async def test_stall_of_one_lane() -> None:
    """With the way back stalled the target gets everything: a publish whose confirm does not come."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as client:
        proxy.stall("to_client")
        await client.send(b"publish")
        await proxy.until(lambda so_far: so_far.to_target_bytes == 7)
        assert await _hears_nothing(client)
        assert proxy.traffic.to_client_bytes == 0
        await proxy.heal()
        assert await _exactly(client, 7) == b"publish"


async def test_swallow_is_silent_and_ends_in_a_reset() -> None:
    """Swallowed bytes are gone and nobody is told; `heal` resets what lost some and leaves the rest alone."""
    async with (
        _proxied() as proxy,
        await anyio.connect_tcp(proxy.host, proxy.port) as busy,
        await anyio.connect_tcp(proxy.host, proxy.port) as idle,
    ):
        assert await _echoed(busy, b"a") == b"a"
        assert await _echoed(idle, b"b") == b"b"
        proxy.swallow()
        await busy.send(b"lost")
        await proxy.until(lambda so_far: so_far.swallowed_bytes == 4)
        async with await anyio.connect_tcp(proxy.host, proxy.port) as late:
            await late.send(b"lost as well")
            await proxy.until(lambda so_far: so_far.swallowed_bytes == 16)
            assert await _hears_nothing(busy)
            await proxy.heal()
            for client in (busy, late):
                with pytest.raises(anyio.BrokenResourceError):
                    await client.receive()
        assert await _echoed(idle, b"alive") == b"alive"


async def test_swallow_hides_the_end_of_a_client() -> None:
    """A client that dies behind a swallowing link stays connected for the target: half-open TCP."""
    async with _proxied() as proxy:
        client = await anyio.connect_tcp(proxy.host, proxy.port)
        assert await _echoed(client, b"a") == b"a"
        proxy.swallow("to_target")
        await client.aclose()
        with anyio.move_on_after(_NOTHING_SECONDS):
            await proxy.until(lambda so_far: so_far.open == 0)
        assert proxy.traffic.open == 1
        await proxy.heal()
        assert proxy.traffic.open == 0


async def test_strand_hits_the_connections_there_are() -> None:
    """They are half-open for good, both sides still connected; new ones work; `heal` resets the stranded."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as old:
        assert await _echoed(old, b"a") == b"a"
        assert proxy.strand() == 1
        await old.send(b"lost")
        async with await anyio.connect_tcp(proxy.host, proxy.port) as new:
            assert await _echoed(new, b"b") == b"b"
            assert await _hears_nothing(old)
            assert proxy.traffic.open == 2
            await proxy.heal()
            with pytest.raises(anyio.BrokenResourceError):
                await old.receive()
            assert await _echoed(new, b"c") == b"c"


async def test_delay_keeps_order_and_throughput() -> None:
    """Each chunk is late by the delay and not by the sum of delays, and chunks stay in order."""
    async with _proxied() as proxy, await anyio.connect_tcp(proxy.host, proxy.port) as client:
        proxy.delay(0.1)
        started = anyio.current_time()
        for number in range(10):
            await client.send(bytes([number]))
            await anyio.lowlevel.checkpoint()
        assert await _exactly(client, 10) == bytes(range(10))
        # Two ways, a tenth of a second each; ten chunks one after another would take two seconds.
        assert 0.2 <= anyio.current_time() - started < 1.5


@pytest.mark.parametrize("count", [1, 70_000])
async def test_cut_after_a_number_of_bytes(count: int) -> None:
    """A planned cut lets exactly so many bytes through, whatever their chunks, then resets; and only once."""
    async with _proxied() as proxy:
        async with await anyio.connect_tcp(proxy.host, proxy.port) as client:
            proxy.cut_after(count, "to_client")
            await client.send(b"x" * (count + 1_000))
            await proxy.until(lambda so_far: so_far.accepted == 1 and so_far.open == 0)
            assert proxy.traffic.to_client_bytes == count
        async with await anyio.connect_tcp(proxy.host, proxy.port) as client:
            assert await _echoed(client, b"y" * (count + 1)) == b"y" * (count + 1)


async def test_target_that_is_down() -> None:
    """With nobody behind it the proxy resets its clients, serves on, and finds the target once it is there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with FaultProxy("127.0.0.1", int(taken.getsockname()[1])) as proxy:
            async with await anyio.connect_tcp(proxy.host, proxy.port) as client:
                with pytest.raises(anyio.BrokenResourceError):
                    await client.receive()
            taken.listen()
            async with await anyio.connect_tcp(proxy.host, proxy.port):
                await proxy.until(lambda so_far: so_far.open == 1)


async def test_failure_of_the_body_comes_out_unwrapped() -> None:
    """An exception inside the context is the one that comes out, so `pytest.raises` around a proxy works."""
    with pytest.raises(LookupError):
        async with FaultProxy("127.0.0.1", 9):
            raise LookupError


@pytest.fixture
def echo_port() -> Generator[int, None, None]:
    """A blocking echo server."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(_echo()) as port:
        yield port


def test_threaded_proxy(echo_port: int) -> None:
    """Blocking code can break and heal its own connection: the proxy runs on without the caller's loop."""
    with threaded_proxy("127.0.0.1", echo_port) as proxy:
        with socket.create_connection((proxy.host, proxy.port), timeout=_SECONDS) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
            proxy.stall()
            client.sendall(b"later")
            proxy.heal()
            assert client.recv(5) == b"later"
            assert proxy.cut() == 1
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((proxy.host, proxy.port), timeout=_SECONDS)
        assert proxy.until(lambda so_far: so_far.open == 0, seconds=_SECONDS).accepted == 1
