"""`sagapost parked`: an operator finds what an inbox could not handle, and acts on it."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ops.processes import invoke, started
from tests.ops.services import place_orders, prepare, write_service

Parked = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A database in which the inbox `warehouse` has rejected orders 1 and 3 and handled order 2."""
    settings = prepare(tmp_path)
    path = write_service(tmp_path, "rejects")
    place_orders(settings, 1, 2, 3)
    with started("consume", path, "--with-relay", cwd=tmp_path, **settings) as process:
        process.wait_for("order 2 handled")
        settled = dict[str, Any]()
        while settled.get("dead") != 2:
            found = json.loads(invoke("status", "--json", cwd=tmp_path, **settings).stdout)
            settled = found["inboxes"]["warehouse"]["parked"]
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    return settings


@pytest.fixture
def parked(settings: dict[str, str], tmp_path: Path) -> Parked:
    """Run `sagapost parked COMMAND warehouse ...`; return what it wrote, as JSON where asked for."""

    def parked(command: str, *arguments: str, code: int = 0) -> Any:
        ran = invoke("parked", command, "warehouse", *arguments, cwd=tmp_path, **settings)
        assert ran.returncode == code, ran.stderr
        if code:
            return ran.stderr
        return json.loads(ran.stdout) if ran.stdout.startswith(("{", "[")) else ran.stdout

    return parked


def test_an_operator_looks_edits_redrives_and_discards(
    parked: Parked, settings: dict[str, str], tmp_path: Path
) -> None:
    """The whole way: find the two, correct one and have it handled, give the other up; every step by command."""
    first, second = parked("list", "--json", "--where", "state=dead")
    assert (first["reason"], first["type"]) == ("rejected", "tests.order-placed.v1")
    assert parked("list", "--where", "reason=failed") == ""
    assert parked("list").count("\n") == 2

    shown = parked("show", str(first["id"]))
    assert shown["attributes"]["id"] == first["event_id"]
    assert shown["error"] in {"order 1 is odd", "order 3 is odd"}
    assert "data" not in shown
    with_data = parked("show", str(first["id"]), "--data")
    assert shown["error"] == f"order {json.loads(with_data['data'])['number']} is odd"

    (tmp_path / "corrected.json").write_text('{"number": 4}')
    parked("edit", str(first["id"]), "--reason", "typing error", "--data-file", "corrected.json")
    chosen = (str(first["id"]), "--reason", "corrected", "--actor", "ada")
    assert parked("redrive", *chosen, "--dry-run").startswith("1 would be handled again")
    assert {entry["state"] for entry in parked("list", "--json")} == {"dead"}
    assert parked("redrive", *chosen, "--json")["waiting"] == 1

    assert parked("discard", "--where", f"id={second['id']}", "--reason", "a joke") == "1 are discarded\n"
    audit = json.loads(invoke("audit", "list", "--json", cwd=tmp_path, **settings).stdout)
    assert [(entry["action"], entry["place"], entry["subject"]) for entry in audit] == [
        ("discard", "warehouse", str(second["id"])),
        ("redrive", "warehouse", str(first["id"])),
        ("edit", "warehouse", str(first["id"])),
    ]
    with started("consume", "shop:inbox", "--with-relay", cwd=tmp_path, **settings) as process:
        process.wait_for("order 4 handled")
        process.send(signal.SIGTERM)
        assert process.end() == 0, process.text
    assert parked("list", "--json") == []


def test_nothing_is_changed_by_accident(parked: Parked, settings: dict[str, str], tmp_path: Path) -> None:
    """Without a condition, `--all` must be said; without a reason nothing happens; unknown inboxes are named."""
    assert "--all for everything" in parked("discard", "--reason", "x", code=2)
    assert "no parked message 99" in parked("discard", "99", "--reason", "x", code=7)
    assert "holds a NUL" in parked("list", "--where", "type=a\x00", code=2)
    assert "--all for everything" in parked("redrive", "--reason", "x", "--all", "--where", "state=dead", code=2)
    assert "--reason" in parked("discard", "--all", code=2)
    assert "no parked message 99" in parked("show", "99", code=7)
    assert "with --data-file or --set" in parked("edit", "1", "--reason", "x", code=2)
    assert len(parked("list", "--json")) == 2
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("UPDATE inbox_parked SET state = 'waiting', claimed = 1, next_attempt_at = '2099-01-01'")
        (number,) = connection.execute("SELECT min(id) FROM inbox_parked").fetchone()
    connection.close()
    for decide in ("redrive", "discard"):
        assert "are being handled just now" in parked(decide, str(number), "--reason", "x", code=8)
        assert parked(decide, "--all", "--reason", "x").startswith("0 are")
    ran = invoke("parked", "list", "warehose", cwd=tmp_path, **settings)
    assert ran.returncode == 7
    assert "This database knows no inbox 'warehose'; it knows: warehouse." in ran.stderr
