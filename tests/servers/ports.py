"""Free TCP ports on the loopback interface, for servers that cannot be told to choose one themselves."""

from __future__ import annotations

import random
import socket
from pathlib import Path

__all__ = ["LOOPBACK", "free_ports", "is_free"]

LOOPBACK = "127.0.0.1"

_LOWEST = 10_240
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL_START = 32_768

# Not the seeded generator of the tests: two workers with one seed would choose the same ports.
_choice = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """`count` different ports below the ephemeral range.

    Never an ephemeral port: while a server is down for a restart, the kernel could lend its port to an outgoing
    connection, and a client that knocks on a closed ephemeral port of its own machine can even connect to itself.
    The ports are free now and not reserved, so who starts a server on one tries again when it was taken meanwhile.
    """
    highest = _ephemeral_start() - 1
    if highest - _LOWEST < 1_000:
        highest = 65_535
    chosen: list[int] = []
    while len(chosen) < count:
        port = _choice.randint(_LOWEST, highest)
        if port not in chosen and is_free(port):
            chosen.append(port)
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        # As servers do: connections of a server that stopped a moment ago must not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _USUAL_EPHEMERAL_START
