"""What can be done to a running RabbitMQ node of our own beside AMQP: virtual hosts, alarms, any Erlang at all."""

from __future__ import annotations

import contextlib
import re
import secrets
from abc import abstractmethod
from collections.abc import Generator

from tests.servers.brokers import RabbitMQServer
from tests.servers.erlang import NodeControl
from tests.servers.errors import ServerFailedError
from tests.servers.rabbitmq_node import USER
from tests.servers.waiting import poll

__all__ = ["AdministeredRabbitMQ"]

_ALARM_SECONDS = 10.0
_USUAL_WATERMARK = "0.4"


class AdministeredRabbitMQ(RabbitMQServer):
    """A node that we can reach from its inside."""

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether its main process lives, be it paused."""

    @property
    @abstractmethod
    def control(self) -> NodeControl:
        """The way to its inside."""

    def rabbitmqctl(self, *args: str) -> str:
        """Run `rabbitmqctl`; half a second and more. Raises ServerFailedError when it exits with an error."""
        return self.control.rabbitmqctl(*args)

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang inside the node, without the full stop; some milliseconds. Raises ServerFailedError."""
        return self.control.evaluate(expression)

    def create_vhost(self, name: str) -> None:
        """Make a virtual host on which the user of `amqp_url` may do everything."""
        vhost, user, everything = _binary(name), f'<<"{USER}">>', '<<".*">>'
        rights = f"{user}, {vhost}, {everything}, {everything}, {everything}, {user}"
        self.evaluate(
            f"ok = rabbit_vhost:add({vhost}, {user}), ok = rabbit_auth_backend_internal:set_permissions({rights})"
        )

    def delete_vhost(self, name: str) -> None:
        """Have a virtual host deleted with its queues and the connections to it; nobody waits for the end of that."""
        self.evaluate(f'spawn(fun() -> rabbit_vhost:delete({_binary(name)}, <<"{USER}">>) end)')

    @contextlib.contextmanager
    def fresh_vhost(self) -> Generator[str, None, None]:
        """A new virtual host, deleted on the way out."""
        name = f"sagapost-test-{secrets.token_hex(6)}"
        self.create_vhost(name)
        try:
            yield name
        finally:
            # A test that killed the node and left it down has nothing to delete.
            if self.running:
                self.delete_vhost(name)

    def create_user(self, name: str, vhost: str, *, configure: str, write: str, read: str) -> None:
        """Make a user, whose password is its name, or set the rights anew; the rights are regular expressions."""
        user, by = _binary(name), f'<<"{USER}">>'
        rights = ", ".join(_binary(right) for right in (configure, write, read))
        self.evaluate(
            f"catch rabbit_auth_backend_internal:add_user({user}, {user}, {by}), "
            f"ok = rabbit_auth_backend_internal:set_permissions({user}, {_binary(vhost)}, {rights}, {by})"
        )

    def delete_user(self, name: str) -> None:
        """Delete a user; its connections stay."""
        self.evaluate(f'rabbit_auth_backend_internal:delete_user({_binary(name)}, <<"{USER}">>)')

    def set_topic_right(self, name: str, vhost: str, exchange: str, write: str | None) -> None:
        """Let a user publish to an exchange only under topics that match; None: under all of them."""
        where, by = f"{_binary(name)}, {_binary(vhost)}, {_binary(exchange)}", f'<<"{USER}">>'
        if write is None:
            self.evaluate(f"ok = rabbit_auth_backend_internal:clear_topic_permissions({where}, {by})")
        else:
            rights = f"{_binary(write)}, {_binary('.*')}"
            self.evaluate(f"ok = rabbit_auth_backend_internal:set_topic_permissions({where}, {rights}, {by})")

    def set_memory_alarm(self, *, on: bool) -> None:
        """Raise or clear the memory alarm; while it is raised, connections that publish get `connection.blocked`.

        Returns when the node says so itself. A connection is told only once it publishes.
        """
        self.evaluate(f"vm_memory_monitor:set_vm_memory_high_watermark({0 if on else _USUAL_WATERMARK})")
        if poll(lambda: True if self._memory_alarm() is on else None, seconds=_ALARM_SECONDS) is None:
            raise ServerFailedError(f"the memory alarm did not turn {'on' if on else 'off'}")

    def _memory_alarm(self) -> bool:
        return "resource_limit, memory" in re.sub(r",\s*", ", ", self.evaluate("rabbit_alarm:get_alarms()"))


def _binary(text: str) -> str:
    """An Erlang binary of the text's UTF-8."""
    return f"<<{','.join(str(byte) for byte in text.encode())}>>"
