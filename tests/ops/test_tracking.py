"""`sagapost saga list|show|...` on a tracker's database, and the rules that `sagapost track` reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.core.errors import ConfigurationError
from sagapost.ops.rules import read_rules
from sagapost.outbox import OutboxTables
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.events import CompensationStuck
from sagapost.sagas.tracker import Notify, PublishEvent, RequestRollback, SagaState, Tracker, TrackerSettings
from tests.ops.processes import invoke
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import Story


def database(tmp_path: Path) -> dict[str, str]:
    """Make a tracker's database with a completed, a late and a stuck saga; return the settings."""
    url = f"sqlite:///{tmp_path / 'tracker.db'}"
    installed = invoke("db", "upgrade", "--tracker", cwd=tmp_path, SAGAPOST_DATABASE_URL=url)
    assert installed.returncode == 0, installed.stderr

    async def fill() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'tracker.db'}")
        tracker = Tracker(engine, Choreography(healthy()), settings=TrackerSettings(keys=("order_id",)))
        before = datetime.now(UTC) - timedelta(hours=2)
        done, late, stuck = (Story(name, start=before) for name in ("done", "late", "stuck"))
        done.completed()
        late.says("orders", "order-placed", data={"order_id": "4712"})
        stuck.says("payment", CompensationStuck("payment", "refund", "no answer", 3))
        await tracker.adopt()
        await tracker.fold([*done.events, *late.events, *stuck.events])
        await engine.dispose()

    anyio.run(fill)
    return {"SAGAPOST_DATABASE_URL": url}


def test_sagas_are_listed_shown_and_acted_on(tmp_path: Path) -> None:
    """List, show by business key, tree, differences, rollback and retry: on one database, as an operator would."""
    settings = database(tmp_path)

    def ask(*arguments: str) -> str:
        done = invoke("saga", *arguments, cwd=tmp_path, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows: list[dict[str, Any]] = json.loads(ask("list", "--json"))
    assert {row["saga"]: row["state"] for row in rows} == {"done": "completed", "late": "running", "stuck": "stuck"}
    assert [line.split("\t")[0] for line in ask("list", "--late").splitlines()] == ["late"]
    shown = ask("show", "order_id=4712")
    assert "saga late  running" in shown
    assert "expected   payment: take_payment" in shown
    assert "late by" in shown
    assert json.loads(ask("show", "4712", "--json"))["saga"] == "late"
    assert "└─ order-placed (orders)" in ask("tree", "done")
    assert "order-completed" in ask("watch", "done")
    assert "never-published\tpayment\tpayment-refunded" in ask("differences")
    assert ask("list", "--where", "state=stuck", "--where", "events<5").split("\t")[0] == "stuck"
    assert ask("list", "--where", "before=2020-01-01") == ""
    tried = json.loads(ask("rollback", "4712", "--reason", "x", "--dry-run", "--json"))
    assert tried == {"saga": "late", "action": "rollback", "dry_run": True}
    assert "roll back saga late" in ask("rollback", "4712", "--reason", "the customer called", "--actor", "kim")
    assert "try again" in ask("retry", "stuck", "--reason", "the bank is back", "--actor", "kim")

    async def published() -> list[tuple[str, str]]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'tracker.db'}")
        table = OutboxTables().outbox
        async with engine.connect() as connection:
            rows = await connection.execute(select(table.c.type, table.c.correlationid).order_by(*table.primary_key))
            found = [(row.type, row.correlationid) for row in rows]
        await engine.dispose()
        return found

    assert anyio.run(published) == [
        ("sagapost.saga.rollback-requested.v1", "late"),
        ("sagapost.saga.retry-requested.v1", "stuck"),
    ]
    # Each request is in the audit, in the transaction that sends it; what was only tried is not.
    audit = json.loads(invoke("audit", "list", "--json", cwd=tmp_path, **settings).stdout)
    assert [(each["desk"], each["action"], each["subject"], each["actor"], each["reason"]) for each in audit] == [
        ("saga", "retry", "stuck", "kim", "the bank is back"),
        ("saga", "rollback", "late", "kim", "the customer called"),
    ]
    for odd, code, words in (("4713", 7, "knows no saga"), ("a\x00b", 2, "NUL character or bytes that are no UTF-8")):
        unknown = invoke("saga", "show", odd, cwd=tmp_path, **settings)
        assert unknown.returncode == code
        assert words in unknown.stderr


def test_rules_are_read_from_toml(tmp_path: Path) -> None:
    """Each kind of action; a rule with two of them is refused, and so is a word that is not known."""
    path = tmp_path / "rules.toml"
    path.write_text(
        """
        [[rule]]
        name = "undo late"
        late = true
        rollback = true

        [[rule]]
        name = "tell"
        states = ["stuck", "waiting"]
        webhook = "https://hooks.example/T0"

        [[rule]]
        name = "say"
        states = ["running"]
        silent_for_seconds = 3600
        emit = "shop.saga-silent.v1"
        data = { team = "orders" }
        """
    )
    undo, tell, say = read_rules(path)
    assert (undo.action, undo.late) == (RequestRollback(), True)
    assert (tell.action, tell.states) == (
        Notify("https://hooks.example/T0"),
        (SagaState.STUCK, SagaState.WAITING),
    )
    assert say.action == PublishEvent({"team": "orders"}, type="shop.saga-silent.v1")
    path.write_text('[[rule]]\nname = "x"\nlate = true\nrollback = true\nemit = "y"\n')
    with pytest.raises(ConfigurationError, match="2 actions"):
        read_rules(path)
    path.write_text('[[rule]]\nname = "x"\nlatest = true\n')
    with pytest.raises(ConfigurationError, match="latest"):
        read_rules(path)
