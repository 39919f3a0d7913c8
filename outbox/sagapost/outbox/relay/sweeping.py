"""The sweep: by time, idle or busy, for rows that no cursor can see.

It looks at what was committed a whole interval ago and is still there. Of those rows the relay should know every one:
in flight, held, or behind a dead letter. If it does not, the reader starts over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from sagapost.core.outbox_store import LeaseToken, OutboxSweeper, Partition, Position
from sagapost.outbox.relay.observations import Missed
from sagapost.outbox.relay.settlement import is_store_error

if TYPE_CHECKING:
    from sagapost.outbox.relay.fetching import FetchStage
    from sagapost.outbox.relay.parts import RelayParts

__all__ = ["run_sweep"]

_PAGE = 1_000
_SHARE = 20
"""A sweep takes at most one part in so many of the time: one that is slow (a day's dead rows before the first living
one, a hundred thousand rows behind a dead letter) comes less often."""
_LOWEST = Position(-(2**62))


async def run_sweep(parts: RelayParts, sweeper: OutboxSweeper, fetcher: FetchStage) -> None:
    """Sweep until cancelled. A failure is reported and waited out: the other stages notice an outage by themselves."""
    interval = parts.settings.sweep_interval
    marked = False

    async def sweep() -> timedelta | None:
        nonlocal marked
        begun = parts.clock.monotonic()
        # What is there now is looked for a whole interval later, so the first turn only marks it.
        missed = await _missed(parts, sweeper, fetcher) if marked else set[Position]()
        await sweeper.mark()
        marked = True
        if missed:
            parts.observer.notify(Missed(rows=len(missed), position=int(min(missed))))
            fetcher.start_over()
        return max(interval, _SHARE * timedelta(seconds=parts.clock.monotonic() - begun))

    await parts.background.every(interval, sweep, is_outage=is_store_error)


async def _missed(parts: RelayParts, sweeper: OutboxSweeper, fetcher: FetchStage) -> set[Position]:
    """Return rows that were left and that the relay knows nothing of, seen so twice.

    Twice: a row that was settled while the answer was on its way is unknown when it arrives, and gone the next time.
    """
    claims = dict(parts.ownership.fetchable)
    unknown = await _unknown(parts, sweeper, fetcher, claims, _LOWEST)
    if not unknown:
        return unknown
    return unknown & await _unknown(parts, sweeper, fetcher, claims, Position(min(unknown) - 1))


async def _unknown(
    parts: RelayParts,
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
