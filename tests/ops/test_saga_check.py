"""`sagapost saga check`: the gate before a deployment, from the command line and at the start of a consumer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from sagapost.ops.commands import app
from sagapost.ops.consuming import LookAtStart
from sagapost.ops.inbox_path import load_inboxes
from sagapost.sagas import SagaTables
from sagapost.sagas.observations import InFlightNotKnown
from tests.inbox.harness import Recorder

runner = CliRunner()

SERVICE = """
from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Sagas, StepContext

outbox = Outbox(source="https://shop.example")
sagas = Sagas("shop", outbox=outbox)
inbox = Inbox("shop", outbox=outbox, context=sagas.context)

@sagas.compensation()
async def {compensation}(ctx: CompensationContext, *, order: str) -> None: ...

@inbox.on("shop.placed.v1")
@sagas.step(compensation={compensation})
async def placed(event: dict[str, str], ctx: StepContext) -> None: ...
"""


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two versions of a service as modules, and a database with a saga of the first in flight; return its URL."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv("SAGAPOST_DATABASE_URL", url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, compensation in (("checked_before", "refund"), ("checked_after", "pay_back")):
        (tmp_path / f"{name}.py").write_text(SERVICE.format(compensation=compensation))
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert runner.invoke(app, ["db", "upgrade"]).exit_code == 0
    tables = SagaTables()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(insert(tables.states).values(service="shop", saga="s1", state="running"))
        intent = {"service": "shop", "saga": "s1", "name": "refund", "arguments": {"order": "1"}}
        connection.execute(insert(tables.compensations).values(intent))
    engine.dispose()
    return url


@pytest.mark.usefixtures("versions")
def test_the_gate_closes_for_what_could_not_be_handled() -> None:
    """Exit code 0 and a sentence for the version that can; 1 and the remedy for the one that cannot, also as JSON."""
    passed = runner.invoke(app, ["saga", "check", "checked_before:inbox"])
    assert (passed.exit_code, passed.stdout) == (0, "in flight: 1 intents; this code can handle all of it\n")
    refused = runner.invoke(app, ["saga", "check", "checked_after:inbox"])
    assert refused.exit_code == 1
    assert "compensation refund" in refused.stdout
    assert "@sagas.compensation(name='refund')" in refused.stdout
    refused = runner.invoke(app, ["saga", "check", "checked_after:inbox", "--json"])
    [finding] = json.loads(refused.stdout)["findings"]
    assert (refused.exit_code, finding["severity"], finding["kind"]) == (1, "error", "compensation")
    assert (finding["subject"], finding["count"], finding["sagas"]) == ("refund", 1, ["s1"])
    assert runner.invoke(app, ["saga", "check", "checked_after:inbox", "--fail-on", "never"]).exit_code == 0


@pytest.mark.usefixtures("versions")
def test_the_doctor_holds_the_code_against_what_is_in_flight() -> None:
    """Among whatever else is wrong, with the saga and the remedy."""
    command = ["doctor", "--min-relays", "0", "--json"]
    assert json.loads(runner.invoke(app, [*command, "checked_before:inbox"]).stdout) == []
    refused = runner.invoke(app, [*command, "checked_after:inbox"])
    [finding] = json.loads(refused.stdout)
    assert (refused.exit_code, finding["severity"], finding["code"]) == (9, "error", "in-flight-compensation")
    assert finding["subject"] == "shop: refund"
    assert finding["evidence"].endswith("; 1 in flight (sagas s1)")
    assert "@sagas.compensation(name='refund')" in finding["remedy"]


@pytest.mark.parametrize("version", ["checked_before", "checked_after"])
async def test_a_process_names_once_at_its_start_what_it_does_not_know(versions: str, version: str) -> None:
    """However many services it runs, the database is read once."""
    engine = create_async_engine(versions.replace("sqlite:", "sqlite+aiosqlite:"))
    seen = Recorder()
    look = LookAtStart(load_inboxes([f"{version}:inbox"]), engine, seen)
    await look.once()
    await look.once()
    await engine.dispose()
    assert [event.subject for event in seen.of(InFlightNotKnown)] == (["refund"] if version == "checked_after" else [])
