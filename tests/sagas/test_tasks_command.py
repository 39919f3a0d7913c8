"""`sagapost tasks`: an operator finds a decision, looks at it, and decides; without any code of the service."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from sagapost.inbox.declared import observations as obs
from sagapost.sagas import Emit, Escalate, RetryStep, RollBack, StepContext
from tests.ops.processes import environment, invoke
from tests.sagas.recovery import SAGA, OrderPacked, OrderShipped, ShippingFailed, Warehouse, an_event
from tests.sagas.virtual_time import VirtualTime


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A database of the service `warehouse` with three open tasks, made by its own process."""
    monkeypatch.chdir(tmp_path)
    database = tmp_path / "warehouse.db"

    async def escalate() -> None:
        service = Warehouse(create_async_engine(f"sqlite+aiosqlite:///{database}"), VirtualTime())
        await service.install()

        @service.inbox.on(OrderPacked)
        async def dispatch(event: OrderPacked, ctx: StepContext) -> None:
            raise Escalate(
                "dispatch-by-hand",
                title=f"No courier for order {event.order_id}",
                details={"parcel": {"kilos": 3}, "note": "fragile"},
                outcomes={
                    "shipped": Emit(OrderShipped(event.order_id), asks=("courier",)),
                    "retry": RetryStep(),
                    "give-up": RollBack(ShippingFailed(event.order_id)),
                },
                due=timedelta(microseconds=1),
            )

        async with service.consuming() as seen:
            await service.send(*(an_event(OrderPacked(f"{n}"), saga=f"{SAGA}-{n}") for n in range(3)))
            await seen.until(obs.Handled, 3)
        await service.engine.dispose()

    anyio.run(escalate)
    return {"SAGAPOST_DATABASE_URL": f"sqlite:///{database}"}


def test_an_operator_lists_looks_and_decides(settings: Mapping[str, str], tmp_path: Path) -> None:
    """The whole way by command; each decision is signed, carried out once, and refused the second time."""
    assert "SAGAPOST_DATABASE_URL" in environment(settings)

    def tasks(*arguments: str, code: int = 0) -> str:
        ran = invoke("tasks", *arguments, cwd=tmp_path, **settings)
        assert ran.returncode == code, ran.stderr
        return ran.stderr if code else ran.stdout

    listed = tasks("list")
    assert listed.count("late") == 3
    assert "No courier for order 1" in listed
    assert [each["saga"] for each in json.loads(tasks("list", "--json", "--where", f"saga={SAGA}-1"))] == [f"{SAGA}-1"]
    assert json.loads(tasks("list", "--json", "--where", "service=payment")) == []

    shown = tasks("show", "1")
    assert "shipped --set courier=...: publishes warehouse.order-shipped.v1" in shown
    assert 'parcel: {"kilos": 3}' in shown

    by = ("--actor", "ada", "--reason", "took it to the post office")
    assert "asks for courier" in tasks("resolve", "1", "--outcome", "shipped", *by, code=2)
    assert "not of the form" in tasks("resolve", "1", "--outcome", "shipped", "--set", "courier", *by, code=2)
    shipped = ("resolve", "1", "--outcome", "shipped", "--set", "courier=post", *by)
    (tried,) = json.loads(tasks(*shipped, "--json", "--dry-run"))
    assert (tried["did"], tried["dry_run"]) == ("published warehouse.order-shipped.v1", True)
    assert "open" in tasks("show", "1").splitlines()[0]
    (done,) = json.loads(tasks(*shipped, "--json"))
    assert done["did"] == "published warehouse.order-shipped.v1"
    assert "resolved as 'shipped' by ada" in tasks("resolve", "1", "--outcome", "retry", *by, code=8)
    assert "resolved as shipped by ada: took it to the post office" in tasks("show", "1")

    assert "is no time" in tasks("resolve", "2", "--outcome", "retry", "--until", "tomorrow", *by, code=2)
    assert "no timezone" in tasks("resolve", "2", "--outcome", "retry", "--until", "2030-01-01", *by, code=2)
    tasks("resolve", "2", "--outcome", "retry", "--until", "2030-01-01T08:00+01:00", *by)
    parked = json.loads(invoke("parked", "list", "warehouse", "--json", cwd=tmp_path, **settings).stdout)
    assert [(each["state"], each["reason"]) for each in parked] == [("waiting", "redo")]
    assert parked[0]["next_attempt_at"] == "2030-01-01T07:00:00+00:00"

    assert "the rollback of the saga has started" in tasks("resolve", "3", "--outcome", "give-up", *by)
    assert tasks("list", "--json").strip() == "[]"
    assert len(json.loads(tasks("list", "--all", "--json"))) == 3
    assert "There is no task 9" in tasks("show", "9", code=7)
    audit = json.loads(invoke("audit", "list", "--where", "desk=tasks", "--json", cwd=tmp_path, **settings).stdout)
    assert [(entry["subject"], entry["did"].partition(":")[0]) for entry in audit] == [
        ("3", "give-up"),
        ("2", "retry"),
        ("1", "shipped"),
    ]
    assert audit[2]["event_id"] == done["event_id"]
    assert audit[2]["correlationid"] == done["saga"]


def test_several_tasks_are_decided_by_one_condition(settings: Mapping[str, str], tmp_path: Path) -> None:
    """All that are meant, each in its own transaction; nothing that is not."""
    decide = ("tasks", "resolve", "--outcome", "give-up", "--reason", "the courier is closed")
    ran = invoke(*decide, "--where", "name=dispatch-*", "--where", f"saga!={SAGA}-1", cwd=tmp_path, **settings)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("the rollback of the saga has started") == 2
    left = json.loads(invoke("tasks", "list", "--json", cwd=tmp_path, **settings).stdout)
    assert [task["saga"] for task in left] == [f"{SAGA}-1"]
    ran = invoke(*decide, "1", "2", cwd=tmp_path, **settings)
    assert ran.returncode == 8
    assert "is not open any more" in ran.stderr
