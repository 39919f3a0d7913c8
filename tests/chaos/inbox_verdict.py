"""What must be in the consuming service's database in the end, and what is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import msgspec

from tests.chaos.inbox_service import Fate, Happened, fate_of
from tests.history.history import History, Reordering
from tests.history.records import replay

__all__ = ["ACCOUNTED", "DECLINED", "Found", "Verdict", "judge", "look"]

ACCOUNTED, DECLINED = "chaos.accounted.v1", "chaos.declined.v1"
_REASONS = {Fate.POISON: "failed", Fate.REJECTED: "rejected", Fate.KILLER: "killed-process"}
_OUTGOING = {Fate.EFFECT: ACCOUNTED, Fate.SECOND_TRY: ACCOUNTED, Fate.DECLINED: DECLINED}


class Effect(msgspec.Struct, frozen=True):
    """A row of `effects`."""

    event: int
    event_id: str
    at: float


class Outgoing(msgspec.Struct, frozen=True):
    """What a handler published."""

    event: int
    type: str
    causationid: str | None
    correlationid: str | None


class Parked(msgspec.Struct, frozen=True):
    """A parked message; `event`: its number, if it is one of the writers'."""

    event: int | None
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What is there, in the order in which it came about."""

    effects: Sequence[Effect]
    outgoing: Sequence[Outgoing]
    parked: Sequence[Parked]


async def look(dsn: str) -> Found:
    """Read the consuming service's database."""
    connection = await asyncpg.connect(dsn)
    try:
        effects = await connection.fetch("SELECT event, event_id, at FROM effects ORDER BY position")
        outgoing = await connection.fetch(
            "SELECT data, type, causationid, correlationid FROM outbox ORDER BY position"
        )
        parked = await connection.fetch("SELECT event_id, data, state, reason FROM inbox_parked ORDER BY id")
    finally:
        await connection.close()
    number = msgspec.json.Decoder(Happened).decode
    return Found(
        [Effect(row["event"], row["event_id"], row["at"]) for row in effects],
        [Outgoing(number(row["data"]).n, row["type"], row["causationid"], row["correlationid"]) for row in outgoing],
        [
            Parked(None if row["reason"] in _STRANGE else number(row["data"]).n, row["state"], row["reason"])
            for row in parked
        ],
    )


_STRANGE = frozenset({"undecodable", "unknown-type", "too-old"})
"""Reasons for which only messages of strangers may be parked here."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement; everything but the counts at the top must be empty."""

    committed: int
    effects: int
    declined: int
    parked: Mapping[str, int]
    """Reason -> how many."""
    lost: tuple[int, ...]
    """Committed, and neither an effect nor a business failure nor a dead letter, as its fate would have it."""
    doubled: tuple[int, ...]
    """More than one effect."""
    unexpected: tuple[int, ...]
    """Effects of events that were rolled back, or whose handler failed."""
    outgoing: tuple[int, ...]
    """Not exactly one outgoing event of the right type, with the cause and the saga of what was handled."""
    misparked: tuple[Parked, ...]
    """Parked without need, twice, not dead, or for another reason."""
    strangers: tuple[str, ...]
    """Reasons for which not exactly those messages of strangers are parked that were sent."""
    reordered: tuple[Reordering, ...] = field(default=())
    """Ordered mode: handled in another order than that of their commits."""

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return not any(
            (
                self.lost,
                self.doubled,
                self.unexpected,
                self.outgoing,
                self.misparked,
                self.strangers,
                self.reordered,
            )
        )

    def __str__(self) -> str:
        wrong = {
            "lost": self.lost,
            "doubled": self.doubled,
            "unexpected": self.unexpected,
            "outgoing events not exactly one": self.outgoing,
            "parked without need": self.misparked,
            "strangers' messages unaccounted for": self.strangers,
            "out of order": self.reordered,
        }
        reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(self.parked.items()))
        lines = [
            f"{self.committed:,} events committed: {self.effects:,} effects, {self.declined:,} business failures, "
            f"{sum(self.parked.values()):,} parked ({reasons})",
            *(f"{name:<36}{len(what):>6,}   {', '.join(map(str, what[:3]))}" for name, what in wrong.items()),
        ]
        return "\n".join(line.rstrip() for line in lines)


def judge(
    found: Found, ledger: set[int], strangers: Mapping[str, int], records: Sequence[Path], *, ordered: bool
) -> Verdict:
    """Compare what is there with what the writers committed and the strangers sent.

    :param ledger: numbers of the committed events.
    :param strangers: reason -> how many of their messages must be parked for it.
    :param records: the writers' accounts.
    """
    fates = {number: fate_of(number) for number in ledger}
    times = Counter(effect.event for effect in found.effects)
    dead = Counter(parked.event for parked in found.parked if parked.event is not None)
    answers = Counter(outgoing.event for outgoing in found.outgoing)
    causes = {effect.event: effect.event_id for effect in found.effects}

    def is_right(outgoing: Outgoing) -> bool:
        fate = fates.get(outgoing.event)
        cause = outgoing.causationid
        return (
            (_OUTGOING.get(fate) == outgoing.type if fate is not None else False)
            and cause is not None
            and cause == causes.get(outgoing.event, cause) == outgoing.correlationid
        )

    def is_lost(number: int, fate: Fate) -> bool:
        if fate in _REASONS:
            return number not in dead
        return (answers if fate is Fate.DECLINED else times)[number] == 0

    def is_misparked(parked: Parked) -> bool:
        if parked.event is None:
            return parked.state != "dead"
        wanted = _REASONS.get(fates.get(parked.event, Fate.EFFECT))
        return parked.state != "dead" or parked.reason != wanted or dead[parked.event] != 1

    reasons = Counter(parked.reason for parked in found.parked)
    return Verdict(
        committed=len(ledger),
        effects=len(found.effects),
        declined=sum(outgoing.type == DECLINED for outgoing in found.outgoing),
        parked=reasons,
        lost=tuple(number for number, fate in fates.items() if is_lost(number, fate)),
        doubled=tuple(number for number, count in times.items() if count > 1),
        unexpected=tuple(n for n in times if n not in fates or _OUTGOING.get(fates[n]) != ACCOUNTED),
        outgoing=tuple({o.event for o in found.outgoing if not is_right(o)} | _not_one(answers, fates)),
        misparked=tuple(filter(is_misparked, found.parked)),
        strangers=tuple(reason for reason in sorted(_STRANGE) if reasons[reason] != strangers.get(reason, 0)),
        reordered=_reordered(found, ledger, records) if ordered else (),
    )


def _not_one(answers: Counter[int], fates: Mapping[int, Fate]) -> set[int]:
    """Return the events that were answered more than once, or not although they should be."""
    missing = {number for number, fate in fates.items() if fate in _OUTGOING and number not in answers}
    return missing | {number for number, count in answers.items() if count > 1}


def _reordered(found: Found, ledger: set[int], records: Sequence[Path]) -> tuple[Reordering, ...]:
    """Judge the order by what was published with each effect and with each business failure."""
    history = History()
    for record in records:
        replay(record, history)
    history.resolve(ledger)
    for position, outgoing in enumerate(found.outgoing):
        history.saw(outgoing.event, at=float(position))
    return history.judge().reordered
