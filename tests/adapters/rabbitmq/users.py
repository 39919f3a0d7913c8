"""Users of a test's virtual host with fewer rights."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

__all__ = ["Users"]


class Users(Protocol):
    """Makes a user of the test's virtual host with the given rights; returns its URL."""

    def __call__(self, *, write: str = ".*", read: str = ".*", configure: str = ".*") -> Awaitable[str]: ...
