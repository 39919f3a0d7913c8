"""Which server is taken, in which order, on machines that offer more or less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.binaries import PostgreSQLBinaries, RabbitMQScripts, find_postgresql, find_rabbitmq
from tests.servers.containers import ContainerPlan
from tests.servers.databases import GivenPostgreSQL
from tests.servers.resolve import (
    AMQP_VARIABLE,
    POSTGRES_VARIABLE,
    GivenUrl,
    Machine,
    Unavailable,
    resolve_postgresql,
    resolve_rabbitmq,
)

_PACKAGED = PostgreSQLBinaries(Path("/packages"), "packages")
_WHEEL = PostgreSQLBinaries(Path("/wheel"), "wheel")
_SCRIPTS = RabbitMQScripts(Path("/scripts"), Path("/epmd"), None)


def _machine(
    *,
    environ: dict[str, str] | None = None,
    packaged: PostgreSQLBinaries | None = None,
    wheel: PostgreSQLBinaries | None = None,
    scripts: RabbitMQScripts | None = None,
    docker: bool = False,
) -> Machine:
    return Machine(
        environ=environ or {},
        find_postgresql=lambda _: packaged,
        find_postgresql_wheel=lambda: wheel,
        find_rabbitmq=lambda _: scripts,
        docker_answers=lambda: docker,
    )


def test_postgresql_in_order_of_preference() -> None:
    """URL, programs, wheel, container, nothing: each is taken only when all before it are missing."""
    environ = {POSTGRES_VARIABLE: "postgresql://given/db"}
    everything = _machine(environ=environ, packaged=_PACKAGED, wheel=_WHEEL, docker=True)
    assert resolve_postgresql(everything) == GivenUrl("postgresql://given/db")
    assert resolve_postgresql(_machine(packaged=_PACKAGED, wheel=_WHEEL, docker=True)) is _PACKAGED
    assert resolve_postgresql(_machine(wheel=_WHEEL, docker=True)) is _WHEEL
    container = resolve_postgresql(_machine(docker=True))
    assert isinstance(container, ContainerPlan)
    assert container.port == 5432
    nothing = resolve_postgresql(_machine())
    assert isinstance(nothing, Unavailable)
    assert POSTGRES_VARIABLE in nothing.reason


def test_rabbitmq_in_order_of_preference() -> None:
    """URL, programs, container, nothing: each is taken only when all before it are missing."""
    environ = {AMQP_VARIABLE: "amqp://given/"}
    assert resolve_rabbitmq(_machine(environ=environ, scripts=_SCRIPTS, docker=True)) == GivenUrl("amqp://given/")
    assert resolve_rabbitmq(_machine(scripts=_SCRIPTS, docker=True)) is _SCRIPTS
    container = resolve_rabbitmq(_machine(docker=True))
    assert isinstance(container, ContainerPlan)
    assert container.port == 5672
    nothing = resolve_rabbitmq(_machine())
    assert isinstance(nothing, Unavailable)
    assert AMQP_VARIABLE in nothing.reason


def test_docker_is_not_asked_when_something_better_is_there() -> None:
    """Asking for Docker takes long where it is missing, so it is the last question."""

    def asked() -> bool:
        raise AssertionError("asked for Docker")

    def unasked(question: Callable[[Machine], object]) -> object:
        return question(Machine({}, lambda _: _PACKAGED, lambda: None, lambda _: _SCRIPTS, docker_answers=asked))

    assert unasked(resolve_postgresql) is _PACKAGED
    assert unasked(resolve_rabbitmq) is _SCRIPTS


def _programs(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch(mode=0o755)
    return folder


def test_postgresql_on_the_path_wins(tmp_path: Path) -> None:
    """A person who put a PostgreSQL on the PATH gets that one, also when only a link to `initdb` is there."""
    real = _programs(tmp_path / "real", "initdb", "postgres")
    links = tmp_path / "links"
    links.mkdir()
    (links / "initdb").symlink_to(real / "initdb")
    packages = tmp_path / "packages"
    _programs(packages / "15" / "bin", "initdb", "postgres")
    assert find_postgresql({"PATH": str(links)}, packages) == PostgreSQLBinaries(real, "PATH")


def test_newest_packaged_postgresql(tmp_path: Path) -> None:
    """Versions are compared as numbers (10 is newer than 9), and one without `initdb` does not count."""
    for version in ("9.6", "10", "15"):
        _programs(tmp_path / version / "bin", "initdb", "postgres")
    _programs(tmp_path / "16" / "bin", "psql")
    found = find_postgresql({"PATH": ""}, tmp_path)
    assert found == PostgreSQLBinaries(tmp_path / "15" / "bin", "packages")


def test_no_postgresql(tmp_path: Path) -> None:
    """A machine without any is recognised."""
    assert find_postgresql({"PATH": str(tmp_path)}, tmp_path) is None


def test_rabbitmq_wrapper_is_not_the_server(tmp_path: Path) -> None:
    """A wrapper on the PATH, without `rabbitmq-env` beside it, is passed over for the real scripts."""
    wrapper = _programs(tmp_path / "sbin", "rabbitmq-server", "rabbitmqctl", "epmd")
    real = _programs(tmp_path / "lib" / "server-3.1", "rabbitmq-server", "rabbitmqctl", "rabbitmq-env")
    found = find_rabbitmq({"PATH": str(wrapper)}, (str(tmp_path / "lib" / "server-*"),))
    assert found is not None
    assert (found.folder, found.epmd) == (real, wrapper / "epmd")
    assert find_rabbitmq({"PATH": str(wrapper)}, ()) is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+asyncpg"])
def test_given_url_leads_to_any_database(scheme: str) -> None:
    """A given URL keeps its host, user and query, whichever of the two schemes it came with."""
    server = GivenPostgreSQL(f"{scheme}://me:pw@db.example:6543/main?ssl=require")
    assert not server.controllable
    assert server.dsn() == "postgresql://me:pw@db.example:6543/main?ssl=require"
    assert server.url("other") == "postgresql+asyncpg://me:pw@db.example:6543/other?ssl=require"
