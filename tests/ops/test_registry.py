"""Adapters by the scheme of a URL: ours, and those of other packages, found by their entry points."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagapost.core.errors import ConfigurationError, MissingExtraError
from sagapost.core.foreign import ForeignMessages
from sagapost.ops.adapters import make_broker
from sagapost.ops.registry import UnknownSchemeError, brokers
from sagapost.ops.settings import load_settings
from tests.ops.processes import invoke
from tests.ops.services import place_orders, prepare, write_service
from tests.processes.command import SAGAPOST
from tests.processes.command import environment as clean_environment

TOY = '''
import logging
from dataclasses import dataclass
from datetime import timedelta

from sagapost.adapters.memory import MemoryBroker
from sagapost.core.adapters import BrokerAdapter
from sagapost.core.settings import check, setting


class ToyBroker(MemoryBroker):
    """The memory broker under another name."""

    def __init__(self, url, settings, foreign):
        super().__init__(url.removeprefix("toy://"))
        self.made_with = (url, settings, foreign)


@dataclass(frozen=True, slots=True)
class ToySettings:
    shelves: int = setting(
        3, "Shelves for toys.", unit="shelves", low=1, high=10, example="4", danger="High: a long way to the top."
    )
    nap: timedelta = setting(
        timedelta(seconds=5), "Time to sleep.", unit="duration", example="5s", danger="Short: tears."
    )
    token: str = setting("", "What opens the box.", unit="password", example="please", danger="Do not lose it.")

    def __post_init__(self):
        check(self)


def check_url(url):
    if "lego" not in url:
        raise ValueError("names no box; use toy://lego")


adapter = BrokerAdapter(
    name="toy",
    title="Toys",
    settings=ToySettings,
    make=lambda url, settings, *, foreign: ToyBroker(url, settings, foreign),
    example="toy://lego",
    check_url=check_url,
    loggers={"toy.driver": logging.CRITICAL},
)
'''


def install(
    folder: Path, package: str, scheme: str, value: str, code: str, *, group: str = "sagapost.brokers"
) -> None:
    """Put a package with an entry point into a folder, as pip would: its module and its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{value.partition(':')[0]}.py").write_text(textwrap.dedent(code))
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{scheme} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path of this process; what it brings is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith("toy"):
            del sys.modules[name]


def test_an_adapter_of_another_package_is_found_by_its_scheme(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings are read, checked, shown and masked like ours, and make its broker: no file of ours knows of it."""
    install(site, "toys", "toy", "toy_adapter:adapter", TOY)
    settings = {
        "SAGAPOST_BROKER_URL": "toy://lego",
        "SAGAPOST_TOY_SHELVES": "7",
        "SAGAPOST_TOY_TOKEN": "hunter2",
    }
    ran = invoke("config", cwd=tmp_path, **settings)
    assert ran.returncode == 0, ran.stderr
    assert "SAGAPOST_TOY_SHELVES\t7\tenvironment" in ran.stdout
    assert "SAGAPOST_TOY_NAP\t5s\tdefault" in ran.stdout
    assert "SAGAPOST_TOY_TOKEN\t***\tenvironment" in ran.stdout
    assert "hunter2" not in ran.stdout + ran.stderr
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    loaded = load_settings()
    url, made, foreign = make_broker(loaded).made_with  # type: ignore[attr-defined]  # pyright: ignore
    assert (url, made.shelves, foreign) == ("toy://lego", 7, ForeignMessages())
    assert loaded.settings.broker == made
    wrong = invoke(
        "config", cwd=tmp_path, **settings | {"SAGAPOST_TOY_SHELVES": "70", "SAGAPOST_BROKER_URL": "toy://bear"}
    )
    assert wrong.returncode == 2
    assert "SAGAPOST_BROKER_URL=toy://bear names no box; use toy://lego." in wrong.stderr


def test_a_wrong_setting_of_another_packages_adapter_is_reported_like_ours(site: Path, tmp_path: Path) -> None:
    """By its declaration: variable, value, range, example."""
    install(site, "toys", "toy", "toy_adapter:adapter", TOY)
    ran = invoke("config", cwd=tmp_path, SAGAPOST_BROKER_URL="toy://lego", SAGAPOST_TOY_SHELVES="70")
    assert "SAGAPOST_TOY_SHELVES=70 is out of range; use 1 to 10. Example: SAGAPOST_TOY_SHELVES=4" in ran.stderr


def test_events_go_through_it(site: Path, tmp_path: Path) -> None:
    """The commands take it for a broker like any other: here one of a single process, which they say."""
    install(site, "toys", "toy", "toy_adapter:adapter", TOY)
    settings = prepare(tmp_path) | {"SAGAPOST_BROKER_URL": "toy://lego"}
    ran = invoke("declare", write_service(tmp_path, "logs"), cwd=tmp_path, **settings)
    assert ran.returncode == 2
    assert "lives in one process" in ran.stderr


def test_an_unknown_scheme_names_the_nearest(tmp_path: Path) -> None:
    """And all the others, so that somebody who expected another adapter sees that it is not installed."""
    with pytest.raises(UnknownSchemeError, match=r"Did you mean amqps://\? There are adapters for amqps://, amqp://"):
        brokers.find("ampqs")
    ran = invoke("config", cwd=tmp_path, SAGAPOST_BROKER_URL="kafka://app:secret@localhost/")
    assert ran.returncode == 2
    assert "has the scheme 'kafka', which no adapter serves. There are adapters for amqp://" in ran.stderr
    assert "secret" not in ran.stderr


def test_two_adapters_for_one_scheme_are_refused(site: Path) -> None:
    """Which one would win is nothing to leave to the order of the path; ours is no exception."""
    install(site, "toys", "toy", "toy_adapter:adapter", TOY)
    install(site, "bricks", "toy", "toy_bricks:adapter", TOY)
    install(site, "rabbits", "amqp", "toy_rabbits:adapter", TOY)
    with pytest.raises(ConfigurationError, match=r"Two adapters serve toy://: .*toy_.* of the package"):
        brokers.find("toy")
    with pytest.raises(
        ConfigurationError, match=r"of the package sagapost and toy_rabbits:adapter of the package rabbits"
    ):
        brokers.find("amqp")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import toy_that_is_not_there", "cannot be imported: ModuleNotFoundError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("pass", "cannot be imported: AttributeError"),
        ("adapter = 'a string'", "is a str, not a BrokerAdapter"),
    ],
)
def test_an_adapter_that_cannot_be_used_says_which_and_why(site: Path, tmp_path: Path, code: str, words: str) -> None:
    """A sentence with the package to mend, not a traceback out of code that is not ours."""
    install(site, "toys", "toy", "toy_broken:adapter", code)
    ran = invoke("config", cwd=tmp_path, SAGAPOST_BROKER_URL="toy://lego")
    assert ran.returncode == 2
    assert "The adapter for toy://, toy_broken:adapter of the package toys," in ran.stderr
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the adapter itself, which knows what it needs."""
    monkeypatch.setattr("sagapost.adapters.rabbitmq.broker.find_spec", {}.get)
    loaded = load_settings(overrides={"broker_url": "amqp://localhost/"})
    with pytest.raises(MissingExtraError, match=r"pip install 'sagapost\[rabbitmq\]'"):
        make_broker(loaded)


def test_variables_of_an_adapter_that_is_not_used_are_not_taken_for_misspelt(site: Path, tmp_path: Path) -> None:
    """Its package is installed and not imported: the same environment may serve two processes."""
    install(site, "toys", "toy", "toy_broken:adapter", "1 / 0")
    ran = invoke("config", cwd=tmp_path, SAGAPOST_TOY_SHELVES="7")
    assert (ran.returncode, ran.stderr) == (0, "")


# --- databases ---


def install_toy_database(folder: Path) -> None:
    """Put the database of another package into a folder."""
    code = Path(__file__).with_name("toy_database.py").read_text()
    install(folder, "toybase", "toysql", "toy_database:adapter", code, group="sagapost.databases")


def test_a_database_of_another_package_serves_every_command(tmp_path: Path) -> None:
    """Tables, relay, inbox and figures: no file of ours knows of it."""
    site = tmp_path / "site"
    install_toy_database(site)
    url = f"toysql:///{tmp_path / 'shop.toys'}"
    settings = {"SAGAPOST_DATABASE_URL": url, "SAGAPOST_BROKER_URL": "memory://", "SAGAPOST_LOG_FORMAT": "json"}
    environment = clean_environment({**settings, "PYTHONWARNINGS": "error"})
    environment["PYTHONPATH"] = os.pathsep.join((str(site), environment["PYTHONPATH"]))

    def sagapost(*arguments: str) -> str:
        ran = subprocess.run(
            [SAGAPOST, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert "CREATE TABLE outbox" in sagapost("db", "sql", "--dialect", "toysql")
    assert "installed" in sagapost("db", "upgrade")
    assert "as this release needs it" in sagapost("db", "check")
    service = write_service(tmp_path, "logs")
    place_orders({"SAGAPOST_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.toys'}"}, 1)
    assert json.loads(sagapost("status", "--json"))["outbox"]["pending"] == 1
    process = subprocess.Popen(
        [SAGAPOST, "consume", service, "--with-relay"],
        env=environment,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if "order 1 handled" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, "".join(lines)
    assert json.loads(sagapost("status", "--json"))["outbox"]["pending"] == 0


def test_the_url_of_another_packages_database_is_checked_like_ours(site: Path, tmp_path: Path) -> None:
    """By the adapter, in the words of a setting; a driver that it does not use is refused before."""
    install_toy_database(site)
    for url, words in (
        ("toysql:///tmp/shop.db", "names no box of toys; use toysql:///path.toys"),
        ("toysql+asyncpg:///tmp/shop.toys", "names the driver 'asyncpg'; leave the driver out, or name 'aiosqlite'"),
        ("toysqll:///tmp/shop.toys", "Did you mean toysql://?"),
    ):
        ran = invoke("config", cwd=tmp_path, SAGAPOST_DATABASE_URL=url)
        assert ran.returncode == 2
        assert words in ran.stderr
