"""A broker that somebody else runs, and virtual hosts on it: made with what lets us, all deleted in the end.

Two ways, tried in this order: the HTTP API of the management plugin, as the user of the address; and `rabbitmqctl`,
here or in the broker's container. Neither is always there, and then tests that need a virtual host are skipped.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import subprocess
import urllib.request
from collections.abc import Generator, Sequence
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from tests.servers.brokers import RabbitMQServer, answers

__all__ = ["Administration", "GivenRabbitMQ", "ManagementApi", "Rabbitmqctl"]

_MANAGEMENT_PORT = 15672
_SECONDS = 60.0
_AT_ONCE = 16
_ERRORS = (OSError, subprocess.SubprocessError)


class Administration(Protocol):
    """A way to make virtual hosts. What it cannot do is an error of the operating system or of a program it calls."""

    def make(self, names: Sequence[str]) -> None:
        """Make virtual hosts on which the user may do everything."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete virtual hosts, with their queues and connections."""
        ...


class ManagementApi:
    """The HTTP API, at its usual port beside the broker."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._user = unquote(parts.username or "guest")
        self._root = f"http://{parts.hostname}:{_MANAGEMENT_PORT}/api"
        login = f"{self._user}:{unquote(parts.password or 'guest')}"
        self._login = f"Basic {base64.b64encode(login.encode()).decode()}"

    def make(self, names: Sequence[str]) -> None:
        """PUT each, and the user's rights on it."""
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        for name in names:
            self._call("PUT", f"vhosts/{name}")
            self._call("PUT", f"permissions/{name}/{quote(self._user, safe='')}", everything)

    def delete(self, names: Sequence[str]) -> None:
        """DELETE each."""
        for name in names:
            self._call("DELETE", f"vhosts/{name}")

    def _call(self, method: str, path: str, body: object = None) -> None:
        request = urllib.request.Request(
            f"{self._root}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self._login, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_SECONDS):
            pass


class Rabbitmqctl:
    """The broker's own command, which boots an Erlang each time: so it is given many to make at once.

    :param prefix: words before it, such as `docker exec` and a container.
    """

    def __init__(self, url: str, prefix: Sequence[str] = ()) -> None:
        self._user = unquote(urlsplit(url).username or "guest")
        self._prefix = prefix

    def make(self, names: Sequence[str]) -> None:
        """Add them, with the user's rights."""
        user = _binary(self._user)
        rights = f'{user}, Name, <<".*">>, <<".*">>, <<".*">>, {user}'
        self._for_each(
            names,
            f"ok = rabbit_vhost:add(Name, {user}), ok = rabbit_auth_backend_internal:set_permissions({rights})",
        )

    def delete(self, names: Sequence[str]) -> None:
        """Delete them."""
        self._for_each(names, f"rabbit_vhost:delete(Name, {_binary(self._user)})")

    def _for_each(self, names: Sequence[str], expression: str) -> None:
        them = ", ".join(map(_binary, names))
        program = f"lists:foreach(fun(Name) -> {expression} end, [{them}])."
        command = [*self._prefix, "rabbitmqctl", "--quiet", "eval", program]
        subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True)


class GivenRabbitMQ(RabbitMQServer):
    """A broker that somebody else runs.

    :param ways: to make virtual hosts, in the order in which they are tried.
    """

    def __init__(self, url: str, ways: Sequence[Administration] = ()) -> None:
        self._parts = urlsplit(url)
        self._ways = ways
        self._way: Administration | None = None
        self._tried = False
        self._made: list[str] = []
        self._free: list[str] = []

    @property
    def controllable(self) -> bool:
        """Never: this run did not start it."""
        return False

    def amqp_url(self, vhost: str | None = None) -> str:
        """The given address, with another virtual host when one is named."""
        parts = self._parts if vhost is None else self._parts._replace(path=f"/{quote(vhost, safe='')}")
        return urlunsplit(parts)

    @contextlib.contextmanager
    def fresh_vhost(self) -> Generator[str | None, None, None]:
        """One that was given to no test before, to be deleted by `close`; None if there is no way to make one."""
        if not self._tried:
            self._tried = True
            self._way = next((way for way in self._ways if self._works(way)), None)
        if self._way is None:
            yield None
            return
        if not self._free:
            self._free = self._make(self._way, _AT_ONCE)
        yield self._free.pop()

    def close(self) -> None:
        """Delete all virtual hosts that were made: the broker is as it was found."""
        made, self._made, self._free = self._made, [], []
        if self._way is not None and made:
            self._way.delete(made)

    def _make(self, way: Administration, number: int) -> list[str]:
        names = [f"sagapost-test-{secrets.token_hex(6)}" for _ in range(number)]
        way.make(names)
        self._made += names
        return names

    def _works(self, way: Administration) -> bool:
        """Return whether it makes virtual hosts on this broker, and not on another that happens to be near."""
        try:
            (name,) = self._make(way, 1)
        except _ERRORS:
            return False
        if answers(self.amqp_url(name)):
            return True
        self._made.remove(name)
        with contextlib.suppress(*_ERRORS):
            way.delete([name])
        return False


def _binary(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'<<"{escaped}"/utf8>>'
