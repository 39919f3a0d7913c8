"""How many files it takes to add one of a kind: each is added to a copy of the library, used there, and counted.

Documentation and tests of what is added are not counted, nor is the list of changes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sagapost.outbox.migrations import OUTBOX_SCHEMA_VERSION
from tests.house.checkout import Checkout
from tests.house.source import ROOT

SAGAPOST = ("-c", "import sys; from sagapost.ops.cli import main; sys.argv[0] = 'sagapost'; sys.exit(main())")
"""The command."""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A copy of the library."""
    return Checkout(tmp_path)


def _files(*folders: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_an_attribute_of_the_envelope_is_two_places(checkout: Checkout) -> None:
    """Declared, and added to the tables that are there: rows, headers and what is parked follow by themselves."""
    url = {"SAGAPOST_DATABASE_URL": f"sqlite:///{checkout.folder / 'shop.db'}"}
    assert "installed" in checkout.run(*SAGAPOST, "db", "upgrade", **url)
    checkout.change(
        "core/sagapost/core/envelope.py",
        "    tracestate: Text | None = None\n",
        "    tracestate: Text | None = None\n    tenant: Text | None = None\n",
    )
    migrations = "outbox/sagapost/outbox/migrations.py"
    version = OUTBOX_SCHEMA_VERSION
    checkout.change(migrations, f"OUTBOX_SCHEMA_VERSION = {version}\n", f"OUTBOX_SCHEMA_VERSION = {version + 1}\n")
    checkout.change(
        migrations,
        f"        Migration({version}, tuple(_ownership(leases, relays, ring))),\n",
        f"        Migration({version}, tuple(_ownership(leases, relays, ring))),\n"
        f"        Migration({version + 1}, tuple(_tenant(outbox) + _tenant(dead) + _tenant(scheduled))),\n",
    )
    checkout.change(
        migrations,
        "\n\ndef _ownership(",
        "\n\ndef _tenant(table: Table) -> list[MigrationStep]:\n"
        '    return [RebuildTable(table, added=frozenset({"tenant"})), AddColumn(table.c.tenant)]\n'
        "\n\ndef _ownership(",
    )
    assert "installed outbox" in checkout.run(*SAGAPOST, "db", "upgrade", **url)
    assert f"outbox {version + 1}" in checkout.run(*SAGAPOST, "db", "check", **url)
    printed = checkout.program("""
        import sqlite3
        from tests.core.test_declaration import FULL, test_every_attribute_has_its_place_everywhere

        test_every_attribute_has_its_place_everywhere()
        assert FULL.tenant
        for table in ("outbox", "outbox_dead", "outbox_scheduled"):
            found = sqlite3.connect("shop.db").execute(f"SELECT name FROM pragma_table_info('{table}')").fetchall()
            print(found.count(("tenant",)))
    """)
    assert printed.split() == ["1", "1", "1"]
    assert (len(checkout.added), len(checkout.changed)) == (0, 2)


def test_a_metric_is_one_place(checkout: Checkout) -> None:
    """A figure of something that is observed already: declared and counted in one file."""
    metrics = "ops/sagapost/ops/telemetry/metrics.py"
    checkout.change(
        metrics,
        "        self._parked = meter",
        '        self._pruned = meter.create_counter("sagapost.inbox.pruned", "{key}", "Dedup keys forgotten")\n'
        "        self._parked = meter",
    )
    checkout.change(
        metrics,
        "            case inbox.Duplicate():",
        "            case inbox.PrunedKeys(rows=rows):\n"
        "                self._pruned.add(rows, consumer)\n"
        "            case inbox.Duplicate():",
    )
    figure = checkout.program("""
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from sagapost.inbox.declared.observations import PrunedKeys
        from sagapost.ops.telemetry import OpenTelemetryMetrics

        reader = InMemoryMetricReader()
        OpenTelemetryMetrics(MeterProvider([reader])).notify(PrunedKeys("warehouse", 7))
        for resource in reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    print(metric.name, metric.data.data_points[0].value)
    """)
    assert "sagapost.inbox.pruned 7" in figure
    assert (len(checkout.added), len(checkout.changed)) == (0, 1)


def test_an_outcome_of_a_handler_is_three_places(checkout: Checkout) -> None:
    """What it means is declared, what becomes of the message is decided, and authors import it from the front."""
    outcomes = "inbox/sagapost/inbox/declared/outcomes.py"
    checkout.change(
        outcomes,
        "AskedFor: TypeAlias = Retry",
        "class Quarantine(Exception):\n"
        '    """Keep it away from people, too: a dead letter without its data."""\n\n\n'
        "AskedFor: TypeAlias = Quarantine | Retry",
    )
    checkout.change(outcomes, '"broke-contract", "snoozed"', '"broke-contract", "quarantine", "snoozed"')
    verdicts = "inbox/sagapost/inbox/handling/verdicts.py"
    checkout.change(verdicts, "    NotKnown,\n", "    NotKnown,\n    Quarantine,\n")
    checkout.change(
        verdicts,
        "        case TooOld(",
        "        case Quarantine():\n"
        '            return ParkingDecision("dead", "quarantine", "It is dangerous.", None, message.attempts + 1)\n'
        "        case TooOld(",
    )
    front = "front/sagapost/__init__.py"
    checkout.change(front, "Instead, Reject, Retry, Snooze\n", "Instead, Quarantine, Reject, Retry, Snooze\n")
    checkout.change(front, "Instead Reject Retry Snooze", "Instead Quarantine Reject Retry Snooze")
    checkout.change(front, '    "Instead",\n', '    "Instead",\n    "Quarantine",\n')
    parked = checkout.program("""
        import anyio
        from sqlalchemy.ext.asyncio import create_async_engine

        from sagapost import Quarantine
        from sagapost.adapters.memory import MemoryBroker
        from sagapost.inbox.declared import observations as obs
        from tests.inbox.harness import NEVER, OrderPlaced, Service, an_event, running, send


        async def main():
            service, broker = Service(), MemoryBroker()
            engine = create_async_engine("sqlite+aiosqlite:///quarantine.db")

            @service.inbox.on(OrderPlaced)
            async def reserve(event, ctx):
                raise Quarantine

            await service.install(engine)
            await send(broker, service, an_event(OrderPlaced("o-1")))
            async with running(service, engine, broker, retry=NEVER) as consumer:
                (parked,) = await consumer.seen.until(obs.Parked)
            print(parked.state, parked.reason)
            await engine.dispose()


        anyio.run(main)
    """)
    assert parked.strip() == "dead quarantine"
    assert (len(checkout.added), len(checkout.changed)) == (0, 3)


def test_a_broker_is_its_own_files_and_one_place(checkout: Checkout) -> None:
    """The scheme of its URL is the one thing that others know of it; the smallest broker that we have is six files."""
    for file in _files("adapters/sagapost/adapters/memory"):
        own = file.replace("/memory/", "/shelf/")
        text = (ROOT / file).read_text().replace("sagapost.adapters.memory", "sagapost.adapters.shelf")
        checkout.add(own, text.replace('name="memory"', 'name="shelf"').replace('"memory://"', '"shelf://"'))
    checkout.change(
        "ops/sagapost/ops/registry.py",
        '        "memory": "sagapost.adapters.memory.adapter:adapter",\n',
        '        "memory": "sagapost.adapters.memory.adapter:adapter",\n'
        '        "shelf": "sagapost.adapters.shelf.adapter:adapter",\n',
    )
    made = checkout.run(
        "-c",
        "from sagapost.ops.adapters import make_broker\n"
        "from sagapost.ops.settings import load_settings\n"
        "print(type(make_broker(load_settings())).__module__)",
        SAGAPOST_BROKER_URL="shelf://here",
    )
    assert made.strip() == "sagapost.adapters.shelf.broker"
    assert len(checkout.added) <= 8
    assert len(checkout.changed) == 1


def test_a_database_is_its_own_files_and_two_places(checkout: Checkout) -> None:
    """Its kit is made known, and the scheme of its URL: every command serves it then.

    The smallest that we have is SQLite, whose files are counted. Here the new one is SQLite under another name.
    """
    checkout.add(
        "core/sagapost/core/databases/toysql.py",
        """
        from sagapost.core.databases.sqlite import SQLite


        class ToySQL(SQLite):
            name = "toysql"
            title = "ToySQL"
        """,
    )
    toy = (ROOT / "tests" / "ops" / "toy_database.py").read_text()
    checkout.add("adapters/sagapost/adapters/toysql/__init__.py", "")
    checkout.add("adapters/sagapost/adapters/toysql/adapter.py", toy)
    databases = "core/sagapost/core/databases/__init__.py"
    checkout.change(
        databases,
        "\nregister(PostgreSQL())\n",
        "\nfrom sagapost.core.databases.toysql import ToySQL\n\nregister(ToySQL())\nregister(PostgreSQL())\n",
    )
    checkout.change(
        "ops/sagapost/ops/registry.py",
        '        "sqlite": "sagapost.adapters.sqlite.adapter:adapter",\n',
        '        "sqlite": "sagapost.adapters.sqlite.adapter:adapter",\n'
        '        "toysql": "sagapost.adapters.toysql.adapter:adapter",\n',
    )
    url = f"toysql:///{checkout.folder / 'shop.toys'}"
    assert "installed" in checkout.run(*SAGAPOST, "db", "upgrade", SAGAPOST_DATABASE_URL=url)
    assert "as this release needs it" in checkout.run(*SAGAPOST, "db", "check", SAGAPOST_DATABASE_URL=url)
    assert len(checkout.changed) <= 3
    own = [*_files("adapters/sagapost/adapters/sqlite"), "core/sagapost/core/databases/sqlite.py"]
    assert len(own) <= 12, own
