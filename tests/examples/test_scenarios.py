"""Every scenario of StreamTech ends as it should, by the services' own data, and its books balance."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import create_async_engine

from examples.streamtech import bank, demo
from examples.streamtech.embedded import SOON, embedded
from examples.streamtech.scenarios import SCENARIOS, run
from examples.streamtech.scenarios import orders as stories
from examples.streamtech.scenarios.stage import Stage


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_scenario_ends_as_it_should(tmp_path: Path, name: str) -> None:
    """What every service has in its own tables is what is expected, and no cent, record or point is off."""
    scenario = SCENARIOS[name]
    async with embedded(tmp_path, scenario.services, look_every=SOON) as deployment:
        outcome = await run(scenario, deployment, print)
        await deployment.stop()
    assert outcome.complaints == []
    assert outcome.found == outcome.expected != {}
    assert (outcome.view is not None) == bool(scenario.services)


def test_a_scenario_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make demo SCENARIO=payment-declined` prints the timeline and the services' data; its exit code is 0."""
    monkeypatch.setenv("SCENARIO", "payment-declined")
    monkeypatch.setenv("SERVERS", "")
    monkeypatch.setattr(sys, "argv", ["demo", "--folder", str(tmp_path)])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    told = ("carol orders 1 of giant-steps", "payment-declined", "stock-released", "cancelled", "the books of all")
    assert [text for text in told if text not in printed] == []


def test_the_scenarios_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`make demo SCENARIO=list` names each of them, and starts nothing."""
    monkeypatch.setenv("SCENARIO", "list")
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert [name for name in SCENARIOS if name not in printed] == []


def test_an_unknown_scenario_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are, and exit code 2."""
    monkeypatch.setenv("SCENARIO", "happier")
    monkeypatch.setattr(sys, "argv", ["demo"])
    with pytest.raises(SystemExit) as exit_:
        demo.main()
    assert exit_.value.code == 2
    assert "there is no 'happier', but happy" in capsys.readouterr().err


async def test_a_cent_that_goes_missing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books notice what no single service could: the bank keeps a cent of a payment that went well."""

    async def robbed(stage: Stage) -> None:
        await stories.happy(stage)
        engine = create_async_engine(os.environ[bank.URL_VARIABLE])
        async with engine.begin() as connection:
            await connection.execute(update(bank.Account).where(bank.Account.name == "ada").values(cents=60_49))
        await engine.dispose()

    scenario = SCENARIOS["happy"]
    async with embedded(tmp_path, scenario.services, look_every=SOON) as deployment:
        outcome = await run(replace(scenario, play=robbed), deployment, print)
    assert outcome.complaints == ["10000 cents have become 9999."]
