"""Plain non-blocking sockets for the proxy: streams would hide the one thing it is about, how a connection ends."""

from __future__ import annotations

import contextlib
import socket
import struct

import anyio

__all__ = ["abort", "connect", "listen", "receive", "reserve_port", "send_some"]

_CHUNK = 65_536
_BACKLOG = 256
_LINGER_ZERO = struct.pack("ii", 1, 0)


def reserve_port(host: str) -> socket.socket:
    """A socket that holds a free port without listening: connecting to it is refused, taking it away impossible."""
    holder = _shared_socket()
    holder.bind((host, 0))
    return holder


def listen(host: str, port: int) -> socket.socket:
    """Listen on a port that `reserve_port` holds."""
    listener = _shared_socket()
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def connect(host: str, port: int) -> socket.socket:
    """Open a connection. Raises OSError when it is refused."""
    family, kind, protocol, _, address = (await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            connection.connect(address)
        await anyio.wait_writable(connection)
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"cannot connect to {host}:{port}")
    except BaseException:
        connection.close()
        raise
    return connection


async def receive(connection: socket.socket) -> bytes:
    """The next bytes, or none at the end of the stream."""
    while True:
        await anyio.wait_readable(connection)
        with contextlib.suppress(BlockingIOError):
            return connection.recv(_CHUNK)


def send_some(connection: socket.socket, data: memoryview) -> int:
    """Send what the connection takes now; 0 when it is full."""
    try:
        return connection.send(data)
    except BlockingIOError:
        return 0


def abort(connection: socket.socket) -> None:
    """Close with a reset instead of an orderly end: the other side sees `Connection reset by peer`."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
    connection.close()


def _shared_socket() -> socket.socket:
    shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    shared.setblocking(False)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # The holder and the listener are on one port at the same time; only the listener is given connections.
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return shared
