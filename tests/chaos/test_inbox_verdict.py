"""The verdict finds what it is there to find: planted faults, one each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.inbox_service import PER_WRITER, Fate, fate_of
from tests.chaos.inbox_verdict import ACCOUNTED, DECLINED, Effect, Found, Outgoing, Parked, Verdict, judge
from tests.history.records import Recorder

NUMBERS = range(PER_WRITER, PER_WRITER + 520)
STRANGERS = {"undecodable": 1, "unknown-type": 1, "too-old": 1}
REASONS = {Fate.POISON: "failed", Fate.REJECTED: "rejected", Fate.KILLER: "killed-process"}


def _sound() -> Found:
    """What is there when all is well: every event committed, of one key, in order."""
    effects: list[Effect] = []
    outgoing: list[Outgoing] = []
    parked = [Parked(None, "dead", reason) for reason in STRANGERS]
    for n in NUMBERS:
        match fate_of(n):
            case Fate.EFFECT | Fate.SECOND_TRY:
                effects.append(Effect(n, f"id-{n}", 0.0))
                outgoing.append(Outgoing(n, ACCOUNTED, f"id-{n}", f"id-{n}"))
            case Fate.DECLINED:
                outgoing.append(Outgoing(n, DECLINED, f"id-{n}", f"id-{n}"))
            case fate:
                parked.append(Parked(n, "dead", REASONS[fate]))
    return Found(effects, outgoing, parked)


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """The account of a writer that committed all of them under one key."""
    with Recorder(tmp_path / "writer") as recorder:
        for version, n in enumerate(NUMBERS):
            recorder.wrote(n, key="k", version=version, inserted=float(version))
            recorder.committed(n, at=version + 0.5)
    return tmp_path / "writer"


def _judge(found: Found, record: Path, ledger: set[int] | None = None) -> Verdict:
    return judge(found, set(NUMBERS) if ledger is None else ledger, STRANGERS, [record], ordered=True)


def test_what_is_sound_is_clean(record: Path) -> None:
    """Every fate of an event takes part."""
    assert {fate_of(n) for n in NUMBERS} == set(Fate)
    assert _judge(_sound(), record).clean


FAULTS: dict[str, Callable[[Found], Found]] = {
    "lost": lambda found: replace(found, effects=found.effects[1:], outgoing=found.outgoing[1:]),
    "doubled": lambda found: replace(found, effects=[*found.effects, found.effects[0]]),
    "unexpected": lambda found: replace(found, effects=[*found.effects, Effect(PER_WRITER + 13, "id", 0.0)]),
    "outgoing": lambda found: replace(found, outgoing=[*found.outgoing, found.outgoing[0]]),
    "misparked": lambda found: replace(found, parked=[*found.parked, Parked(PER_WRITER, "dead", "killed-process")]),
    "strangers": lambda found: replace(found, parked=found.parked[1:]),
    "reordered": lambda found: replace(found, outgoing=[found.outgoing[1], found.outgoing[0], *found.outgoing[2:]]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, record: Path) -> None:
    """And named for what it is."""
    verdict = _judge(FAULTS[fault](_sound()), record)
    assert getattr(verdict, fault)
    assert not verdict.clean


def test_effects_of_what_was_rolled_back_are_found(record: Path) -> None:
    """An effect, and an outgoing event, of an event that is not in the ledger."""
    verdict = _judge(_sound(), record, set(NUMBERS) - {PER_WRITER})
    assert verdict.unexpected == (PER_WRITER,)
    assert verdict.outgoing == (PER_WRITER,)
    lost = _judge(replace(_sound(), parked=[]), record)
    assert set(lost.lost) == {n for n in NUMBERS if fate_of(n) in REASONS}
