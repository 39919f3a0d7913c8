"""The core stands alone, and a missing optional package names the extra that brings it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packaging.environments import Environment

ROOT = Path(__file__).resolve().parents[2]

ADAPTERS = {
    "postgresql": "from sagapost.adapters.postgresql import PostgreSQLOutboxStore",
    "rabbitmq": "from sagapost.adapters.rabbitmq import RabbitMQBroker; RabbitMQBroker('amqp://127.0.0.1/')",
}
"""Package under `sagapost.adapters`, also the name of its extra -> the first thing a user does with it."""

COMMAND = "import sys; from sagapost.ops.cli import main; sys.argv[0] = 'sagapost'; sys.exit(main())"
"""What the installed command does."""

MakeEnvironment = Callable[..., Environment]


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeEnvironment:
    """Make an environment with the wheel, the core's dependencies, and those of the named extras."""

    def make(*extras: str) -> Environment:
        return Environment(tmp_path_factory.mktemp("environment"), wheel, *extras)

    return make


def modules_of(*portions: str) -> list[str]:
    """Return the import names of every module of these portions."""
    return [
        ".".join(path.relative_to(ROOT / portion).with_suffix("").parts).removesuffix(".__init__")
        for portion in portions
        for path in sorted((ROOT / portion / "sagapost").rglob("*.py"))
    ]


def importing(*modules: str) -> str:
    """Return a program that imports each module."""
    return "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules)


def test_the_environment_is_as_empty_as_it_claims(environment: MakeEnvironment) -> None:
    """A driver that is installed here is absent there: the tests below test what they say."""
    bare = environment()
    for driver in ("asyncpg", "aiormq", "aiosqlite", "pydantic", "typer", "pytest"):
        ran = bare.run("-c", f"import {driver}")
        assert ran.returncode == 1
        assert f"No module named '{driver}'" in ran.stderr


def test_the_core_dependencies_are_enough_to_publish(environment: MakeEnvironment) -> None:
    """With nothing but the core's four packages, an event is written and read back in a transaction on SQLite."""
    ran = environment().run(
        "-c",
        """
import dataclasses
import sqlalchemy as sa
from sagapost.core import event
from sagapost.outbox import Outbox

@event("orders.order-placed.v1")
@dataclasses.dataclass
class OrderPlaced:
    order_id: int

outbox = Outbox(source="https://orders.streamtech.example")
engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
with engine.begin() as connection:
    outbox.tables.metadata.create_all(connection)
    outbox.publish(connection, OrderPlaced(order_id=7), key="7")
    print(connection.execute(sa.select(outbox.tables.outbox.c.data)).scalar_one().decode())
engine.dispose()
""",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == '{"order_id":7}'


def test_no_part_but_adapters_and_ops_needs_an_extra(environment: MakeEnvironment) -> None:
    """Every module of core, outbox, inbox and sagas imports without any driver.

    So do the two adapters for which the standard library is enough: the memory broker and the SQLite store.
    """
    modules = [
        *modules_of("core", "outbox", "inbox", "sagas"),
        "sagapost.adapters.memory",
        "sagapost.adapters.sqlite.store",
    ]
    ran = environment().run("-c", importing(*modules))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("extra", "use"), ADAPTERS.items(), ids=list(ADAPTERS))
def test_an_absent_driver_names_the_extra(environment: MakeEnvironment, extra: str, use: str) -> None:
    """The first use of an adapter without its driver raises one error with the command that installs it."""
    ran = environment().run(
        "-c",
        f"""
from sagapost.core.errors import MissingExtraError
try:
    {use}
except MissingExtraError as error:
    print(error.extra)
    print(error)
""",
    )
    assert ran.returncode == 0, ran.stderr
    named, sentence = ran.stdout.strip().splitlines()
    assert named == extra
    assert f"pip install 'sagapost[{extra}]'" in sentence


@pytest.mark.parametrize("extra", ADAPTERS)
def test_an_extra_brings_all_its_adapter_needs(environment: MakeEnvironment, extra: str) -> None:
    """With its own extra and no other, every module of the adapter imports."""
    modules = [name for name in modules_of("adapters") if name.startswith(f"sagapost.adapters.{extra}")]
    ran = environment(extra).run("-c", importing(*modules))
    assert modules
    assert ran.returncode == 0, ran.stderr


def test_the_command_without_its_extra_says_what_to_install(environment: MakeEnvironment) -> None:
    """`sagapost` in a bare installation ends with exit code 2 and the command to run, without a traceback."""
    ran = environment().run("-c", COMMAND)
    assert ran.returncode == 2, ran.stderr
    assert "pip install 'sagapost[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_cli_extra_is_enough_for_help(environment: MakeEnvironment) -> None:
    """With the extra `cli` alone, `sagapost --help` works: drivers are imported when a command needs them."""
    ran = environment("cli").run("-c", COMMAND, "--help")
    assert ran.returncode == 0, ran.stderr
    assert "relay" in ran.stdout


@pytest.mark.parametrize(
    ("extra", "arguments", "database_url"),
    [
        pytest.param("sqlite", ["db", "upgrade"], "sqlite:///orders.db", id="sqlite"),
        pytest.param("postgresql", ["db", "upgrade"], "postgresql://orders@127.0.0.1/orders", id="postgresql"),
        pytest.param("rabbitmq", ["relay"], "sqlite:///orders.db", id="rabbitmq"),
    ],
)
def test_a_command_that_needs_another_extra_names_it(
    environment: MakeEnvironment, extra: str, arguments: list[str], database_url: str
) -> None:
    """The command line is there but the driver its URL asks for is not: exit code 2, and what to install."""
    others = {"sqlite", "postgresql", "rabbitmq"} - {extra}
    ran = environment("cli", *others).run(
        "-c", COMMAND, *arguments, SAGAPOST_DATABASE_URL=database_url, SAGAPOST_BROKER_URL="amqp://127.0.0.1/"
    )
    assert ran.returncode == 2, ran.stderr
    assert f"sagapost[{extra}]" in ran.stderr + ran.stdout
    assert "Traceback" not in ran.stderr
