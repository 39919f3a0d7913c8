"""Containers, with a stand-in for Docker: what is started is noted, and what is noted is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import servers as servers_module
from tests.servers.containers import ContainerPlan, StartedContainer, remove_containers, start_container
from tests.servers.databases import GivenPostgreSQL
from tests.servers.given_rabbitmq import GivenRabbitMQ
from tests.servers.resolve import Machine
from tests.servers.rundir import RunDirectory
from tests.servers.servers import Servers

_PLAN = ContainerPlan("image:1", 1234, ())


def test_what_is_started_is_removed(tmp_path: Path) -> None:
    """Every container of the run is removed once, and one that cannot be removed does not keep the others."""
    names = iter("abc")

    def start(plan: ContainerPlan) -> StartedContainer:
        return StartedContainer(next(names), "127.0.0.1", plan.port)

    for _ in range(3):
        start_container(tmp_path, _PLAN, start)
    removed: list[str] = []

    def remove(container_id: str) -> None:
        if container_id == "a":
            raise OSError("no such container")
        removed.append(container_id)

    remove_containers(tmp_path, remove)
    remove_containers(tmp_path, remove)
    assert removed == ["b", "c"]


def test_container_serves_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only Docker answers, each server is one container for the whole run, awaited and not controllable."""
    started: list[str] = []

    def start(plan: ContainerPlan) -> StartedContainer:
        started.append(plan.image)
        return StartedContainer(f"id-{len(started)}", "127.0.0.1", 40_000 + len(started))

    asked: list[str] = []

    def answers(url: str) -> bool:
        asked.append(url)
        return asked.count(url) == 3

    monkeypatch.setattr(servers_module, "let_in", answers)
    monkeypatch.setattr(servers_module, "shakes_hands", answers)
    machine = Machine({}, lambda _: None, lambda: None, lambda _: None, docker_answers=lambda: True)
    with RunDirectory.create() as run:
        for _ in range(2):  # as two workers would ask
            servers = Servers(run, machine, start)
            database, broker = servers.postgresql(), servers.rabbitmq()
            assert isinstance(database, GivenPostgreSQL)
            assert database.dsn() == "postgresql://sagapost:sagapost@127.0.0.1:40001/postgres"
            assert isinstance(broker, GivenRabbitMQ)
            assert broker.amqp_url() == "amqp://sagapost:sagapost@127.0.0.1:40002/"
        assert len(started) == 2
        assert len(asked) == 6
        # Nothing to remove for real: these ids never existed.
        remove_containers(run.path, lambda _: None)
