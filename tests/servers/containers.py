"""Servers in containers, for machines without binaries but with Docker: started by testcontainers, ended by us.

testcontainers ends its containers with the process that started them. Here that is one worker of several, so its own
reaper is switched off and the run's sweep removes what the run's folder lists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ContainerPlan", "StartedContainer", "docker_answers", "remove_containers", "start_container"]

_LIST = "containers"


@dataclass(frozen=True, slots=True)
class ContainerPlan:
    """What to start: an image, its one port and its environment."""

    image: str
    port: int
    environ: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class StartedContainer:
    """A container that was started: its id and where its port can be reached."""

    container_id: str
    host: str
    port: int


def docker_answers() -> bool:
    """Whether a Docker daemon answers here."""
    with contextlib.suppress(Exception):  # any failure at all means: not here
        client = _docker(seconds=3)
        try:
            return bool(client.ping())
        finally:
            client.close()
    return False


def start_container(
    run: Path, plan: ContainerPlan, starter: Callable[[ContainerPlan], StartedContainer] | None = None
) -> StartedContainer:
    """Start a container and note it in the run's folder for `remove_containers`."""
    started = (starter or _start_with_testcontainers)(plan)
    (run / _LIST).mkdir(exist_ok=True)
    (run / _LIST / started.container_id).touch()
    return started


def remove_containers(run: Path, remover: Callable[[str], None] | None = None) -> None:
    """Remove the containers that were noted in a run's folder."""
    for note in sorted((run / _LIST).glob("*")):
        # One that cannot be removed must not keep the others, nor the rest of the clean-up.
        with contextlib.suppress(Exception):
            (remover or _remove)(note.name)
            note.unlink()


def _start_with_testcontainers(plan: ContainerPlan) -> StartedContainer:
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer

    testcontainers_config.ryuk_disabled = True
    container = DockerContainer(plan.image).with_exposed_ports(plan.port)
    environ: Mapping[str, str] = dict(plan.environ)
    for name, value in environ.items():
        container = container.with_env(name, value)
    container.start()
    return StartedContainer(
        container_id=str(container.get_wrapped_container().id),
        host=str(container.get_container_host_ip()),
        port=int(container.get_exposed_port(plan.port)),
    )


def _remove(container_id: str) -> None:
    client = _docker(seconds=10)
    try:
        client.containers.get(container_id).remove(force=True, v=True)
    finally:
        client.close()


def _docker(seconds: int) -> Any:
    # Imported late, here and above: slow, and needed only where nothing better was found.
    from testcontainers.core.docker_client import DockerClient

    return DockerClient(timeout=seconds).client
