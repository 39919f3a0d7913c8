"""The sweep: by time, idle or busy, for rows that no cursor can see.

It looks at what was committed a whole interval ago and is still there. Of those rows the relay should know every one:
in flight, held, or behind a dead letter. If it does not, the reader starts over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio

from sagapost.core.errors import StoreError
from sagapost.core.outbox_store import LeaseToken, OutboxSweeper, Partition, Position
from sagapost.outbox.relay.observations import Missed, StoreLost

if TYPE_CHECKING:
    from sagapost.outbox.relay.fetching import FetchStage
    from sagapost.outbox.relay.parts import Parts

__all__ = ["run_sweep"]

_PAGE = 1_000
_SHARE = 20
"""A sweep takes at most one part in so many of the time: one that is slow (a day's dead rows before the first living
one, a hundred thousand rows behind a dead letter) comes less often."""
_LOWEST = Position(-(2**62))


async def run_sweep(parts: Parts, sweeper: OutboxSweeper, fetcher: FetchStage) -> None:
    """Sweep until cancelled. A failure is reported and waited out: the other stages notice an outage by themselves."""
    interval = parts.settings.sweep_interval.total_seconds()
    pause, attempt = interval, 0
    await _marked(parts, sweeper)
    while True:
        await anyio.sleep(pause)
        begun = parts.clock.monotonic()
        try:
            missed = await _missed(parts, sweeper, fetcher)
            await sweeper.mark()
        except StoreError as error:
            attempt += 1
            pause = max(interval, parts.settings.reconnect.seconds(attempt))
            parts.observer.notify(StoreLost(parts.database, str(error), attempt, pause))
            continue
        attempt = 0
        if missed:
            parts.observer.notify(Missed(rows=len(missed), position=int(min(missed))))
            fetcher.start_over()
        pause = max(interval, _SHARE * (parts.clock.monotonic() - begun))


async def _marked(parts: Parts, sweeper: OutboxSweeper) -> None:
    try:
        await sweeper.mark()
    except StoreError as error:
        parts.observer.notify(StoreLost(parts.database, str(error), 1, parts.settings.sweep_interval.total_seconds()))


async def _missed(parts: Parts, sweeper: OutboxSweeper, fetcher: FetchStage) -> set[Position]:
    """Return rows that were left and that the relay knows nothing of, seen so twice.

    Twice: a row that was settled while the answer was on its way is unknown when it arrives, and gone the next time.
    """
    claims = dict(parts.ownership.fetchable)
    unknown = await _unknown(parts, sweeper, fetcher, claims, _LOWEST)
    if not unknown:
        return unknown
    return unknown & await _unknown(parts, sweeper, fetcher, claims, Position(min(unknown) - 1))


async def _unknown(
    parts: Parts,
    sweeper: OutboxSweeper,
    fetcher: FetchStage,
    claims: Mapping[Partition, LeaseToken],
    above: Position,
) -> set[Position]:
    """Return the first such rows, at most a page."""
    unknown: set[Position] = set()
    while not unknown:
        rows = await sweeper.left(claims, above=above, limit=_PAGE)
        passed = fetcher.passed
        unknown = {position for position, key in rows if position <= passed and not parts.gate.knows(position, key)}
        if len(rows) < _PAGE or (rows[-1][0] > passed and passed < math.inf):
            break
        above = rows[-1][0]
    return unknown
