"""What makes a RabbitMQ node a private one: its names and ports, its configuration, its environment."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.servers.binaries import RabbitMQScripts
from tests.servers.identity import Identity, unprivileged
from tests.servers.ports import LOOPBACK, free_ports

__all__ = ["USER", "RabbitMQNode", "environment", "initialise"]

USER = "sagapost"


@dataclass(frozen=True, slots=True)
class RabbitMQNode:
    """What any process of the run needs to know to control the node; kept beside the data."""

    scripts: str
    epmd: str
    erl_call: str | None
    name: str
    cookie: str
    password: str
    amqp_port: int
    distribution_port: int
    epmd_port: int
    schedulers: int
    identity: Identity

    @classmethod
    def load(cls, home: Path) -> RabbitMQNode:
        """The node whose folder is `home`."""
        return msgspec.json.decode((home / "node.json").read_bytes(), type=RabbitMQNode)


def initialise(home: Path, scripts: RabbitMQScripts, *, schedulers: int, config: Sequence[str]) -> None:
    """Fill an empty folder with what a new node needs to start."""
    identity = unprivileged("rabbitmq", ["/bin/sh", "-c", f"test -r '{scripts.folder}/rabbitmq-env'"], home.parent)
    amqp_port, distribution_port, epmd_port = free_ports(3)
    node = RabbitMQNode(
        scripts=str(scripts.folder),
        epmd=str(scripts.epmd),
        erl_call=str(scripts.erl_call) if scripts.erl_call is not None else None,
        name=f"sagapost-{secrets.token_hex(4)}@localhost",
        cookie=secrets.token_hex(16),
        password=secrets.token_urlsafe(18),
        amqp_port=amqp_port,
        distribution_port=distribution_port,
        epmd_port=epmd_port,
        schedulers=schedulers,
        identity=identity,
    )
    (home / "node.json").write_bytes(msgspec.json.encode(node))
    lines = {line.partition("=")[0].strip(): line for line in [*_configuration(node), *config]}
    (home / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in lines.values()))
    cookie = home / ".erlang.cookie"
    cookie.write_text(node.cookie)
    cookie.chmod(0o400)
    for path in (home, home / "rabbitmq.conf", cookie):
        identity.give(path)


def _configuration(node: RabbitMQNode) -> list[str]:
    return [
        f"listeners.tcp.1 = {LOOPBACK}:{node.amqp_port}",
        f"default_user = {USER}",
        f"default_pass = {node.password}",
        "loopback_users = none",
        "disk_free_limit.absolute = 10MB",
        "log.file = false",
        "log.console = true",
        "log.console.level = info",
    ]


def environment(home: Path, node: RabbitMQNode) -> dict[str, str]:
    """All that the scripts would otherwise take from the system's own RabbitMQ."""
    loopback_only = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "ERL_EPMD_PORT": str(node.epmd_port),
        "ERL_EPMD_ADDRESS": LOOPBACK,
        "RABBITMQ_NODENAME": node.name,
        "RABBITMQ_DIST_PORT": str(node.distribution_port),
        "RABBITMQ_CONF_ENV_FILE": str(home / "nonexistent"),
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "nonexistent.config"),
        "RABBITMQ_CONFIG_FILES": str(home / "nonexistent.d"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"+S {node.schedulers}:{node.schedulers} {loopback_only}",
        "RABBITMQ_CTL_ERL_ARGS": loopback_only,
        # Lets the script become the node instead of staying as its parent, so that signals reach the node itself.
        "RUNNING_UNDER_SYSTEMD": "true",
    }
