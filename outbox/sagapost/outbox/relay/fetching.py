"""The fetch stage: reads pages while there is room, and sleeps when there is nothing to do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from sagapost.core.outbox_store import Doorbell, FetchPage, OutboxReader
from sagapost.outbox.relay.observations import Fetched, Idle, Released, Saturated, Woken
from sagapost.outbox.relay.policy import Refusals

if TYPE_CHECKING:
    from sagapost.outbox.relay.parts import RelayParts

__all__ = ["FetchStage"]

_SHORTEST_NAP = 0.001
_LONGEST_NAP = 0.02
_BLOCKED_CHECK = 1.0
"""Seconds between looks at whether an operator has cleared a dead letter that blocks a key."""
_AWAKE = 0.05
"""Seconds of quiet before the doorbell is armed: under steady traffic a relay polls in short naps instead, which costs
no write and lets writers commit without ringing."""


class FetchStage:
    """Reads rows into the gate."""

    def __init__(self, parts: RelayParts, reader: OutboxReader, doorbell: Doorbell, refusals: Refusals) -> None:
        self._parts = parts
        self._reader = reader
        self._doorbell = doorbell
        self._refusals = refusals
        self._generation = parts.ownership.generation
        self._passed = 0.0
        self._quiet_since: float | None = None
        self._start_over = False
        self._blocked_checked_at = parts.clock.monotonic()
        self._armed = False
        self._false_rings = 0
        self._naps_after_arming = 0
        self._saturated = False

    async def run(self) -> None:
        """Fetch until the relay stops; ends without an error then."""
        parts = self._parts
        # A former cycle may have ended in its sleep: from now on nobody has to ring, however long this one is busy.
        await self._doorbell.disarm()
        while await self._has_room():
            page = await self._fetch()
            if self._generation != parts.ownership.generation:
                # Partitions changed hands while it was read, perhaps away and back: its rows come again, after
                # those that were dropped meanwhile.
                continue
            parts.gate.replayed(page.released)
            self._note_passed(page)
            now = parts.clock.monotonic()
            parts.gate.admit(page.rows, parts.ownership.fetchable, now)
            for name, hold in parts.gate.gone(page.missing) if page.missing else ():
                key = name if isinstance(name, str) else None
                parts.observer.notify(Released(key=key, position=int(hold.position)))
            if page.rows:
                parts.observer.notify(Fetched(rows=len(page.rows), caught_up=page.caught_up))
                self._quiet_since = None
                self._false_rings = 0
                parts.ready.set()
            if parts.gate.dropped_for_policy:
                await self._refusals.park_followers()
            if self._armed and page.rows:
                self._armed = False
                await self._doorbell.disarm()
            elif page.caught_up and not page.rows:
                await self._rest(page)
            elif self._overfull and not page.rows:
                await self._nap(_LONGEST_NAP)

    @property
    def passed(self) -> float:
        """The position up to which every committed row was read since the reader last started over."""
        return self._passed

    def start_over(self) -> None:
        """Read from the oldest row again; what is in flight or held comes again and is passed over."""
        self._start_over = True
        self._parts.nudge.set()

    async def _fetch(self) -> FetchPage:
        parts, settings = self._parts, self._parts.settings
        now = parts.clock.monotonic()
        if parts.gate.blocked_keys() and now - self._blocked_checked_at > _BLOCKED_CHECK:
            self._blocked_checked_at = now
            await self._refusals.load_blocked()
        while self._generation != parts.ownership.generation or self._start_over:
            self._start_over = False
            # Again if more was gained meanwhile: a partition's dead letters must be known before its rows are read.
            self._generation = parts.ownership.generation
            self._restart()
            await self._refusals.load_blocked()
        due = parts.gate.due(now, math.inf if self._overfull else self._passed)
        if due:
            self._reader.revisit(due)
        for key, position in parts.gate.replaying().items():
            self._reader.replay_key(key, above=position)
        room = settings.max_in_flight - parts.gate.in_flight
        rows = min(settings.page_rows, max(room, 0))
        if self._overfull:
            rows = 0
        if self._overfull is not self._saturated:
            self._saturated = self._overfull
            parts.observer.notify(Saturated(held=parts.gate.held, saturated=self._saturated))
        parts.gate.begin_fetch()
        # A copy: what is gained while the reader works must not be read from the middle.
        return await self._reader.fetch(
            dict(parts.ownership.fetchable),
            max_rows=rows,
            max_bytes=max(settings.max_in_flight_bytes - parts.gate.in_flight_bytes, 1),
        )

    @property
    def _overfull(self) -> bool:
        """So many keys are held that nothing more is read until some clear."""
        return self._parts.gate.held >= self._parts.settings.max_held_keys

    def _note_passed(self, page: FetchPage) -> None:
        """Remember how far the reader came since it last started over."""
        if page.caught_up:
            self._passed = math.inf
        elif page.rows:
            self._passed = max(self._passed, page.rows[-1].position)

    def _restart(self) -> None:
        self._passed = 0.0
        self._reader.restart()
        self._parts.gate.restarted()

    async def _has_room(self) -> bool:
        """Wait until a page of useful size fits (small ones cost a round trip for little); False when stopping."""
        parts, settings = self._parts, self._parts.settings
        wanted = max(1, min(settings.page_rows, settings.max_in_flight // 4))
        while not parts.stop.is_set():
            full = settings.max_in_flight - parts.gate.in_flight < wanted
            heavy = parts.gate.in_flight_bytes >= settings.max_in_flight_bytes // 2
            if not full and not heavy:
                return True
            await parts.settler.capacity.wait(0.5)
        return False

    async def _rest(self, page: FetchPage) -> None:
        """Nothing to fetch: nap while traffic may go on, then arm the doorbell and sleep."""
        parts = self._parts
        now = parts.clock.monotonic()
        if self._quiet_since is None:
            self._quiet_since = now
        quiet = now - self._quiet_since
        longest = parts.settings.poll_interval.total_seconds()
        if not self._armed:
            if quiet < min(_AWAKE * 2**self._false_rings, longest):
                await self._nap(min(max(quiet / 4, _SHORTEST_NAP), _LONGEST_NAP))
                return
            # Arm, then look once more: a writer that committed before it saw the flag did not ring.
            await self._doorbell.arm()
            self._armed = True
            self._naps_after_arming = 0
            return
        parts.observer.notify(Idle())
        if page.writers_in_progress:
            # They may have inserted before the flag was set and will commit without ringing: look soon, then later
            # and later, since one of them may stay open for hours.
            sleep = min(0.005 * 2 ** min(self._naps_after_arming, 10), longest)
            self._naps_after_arming += 1
        else:
            sleep = longest
        rung = await self._sleep(sleep)
        parts.observer.notify(Woken(rung=rung))
        if rung:
            # The ring may have been for another relay's partition. Arm again only after a longer and longer quiet
            # time if that goes on, so that the bell does not ring for every commit that is not ours.
            self._false_rings = min(self._false_rings + 1, 10)
            self._armed = False
            self._quiet_since = None
            await self._doorbell.disarm()

    async def _nap(self, seconds: float) -> None:
        await self._parts.nudge.wait(self._until_due(seconds))

    async def _sleep(self, seconds: float) -> bool:
        """Sleep until rung, nudged, or timed out; return whether it rang."""
        rung = False

        async def listen(scope: anyio.CancelScope) -> None:
            nonlocal rung
            rung = await self._doorbell.wait(self._until_due(seconds))
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen, tasks.cancel_scope)
            await self._parts.nudge.wait()
            tasks.cancel_scope.cancel()
        return rung

    def _until_due(self, seconds: float) -> float:
        due = self._parts.gate.next_due
        if due is None:
            return seconds
        return max(min(seconds, due - self._parts.clock.monotonic()), _SHORTEST_NAP)
