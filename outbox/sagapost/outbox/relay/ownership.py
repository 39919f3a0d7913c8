"""Which partitions this relay owns: heartbeat, fair share, hand-over after draining, and proof of the lease."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sagapost.core.clock import Clock
from sagapost.core.errors import StoreError
from sagapost.core.life import Signal
from sagapost.core.observer import Observer
from sagapost.core.outbox_store import Claims, LeaseToken, OutboxLeases, Partition, RelayId
from sagapost.outbox.relay.observations import LeaseLost, LeasesChanged

__all__ = ["Ownership"]

_BEATS_PER_LEASE = 3
_MARGIN = 0.2
"""Share of the lease kept as a safety margin: sending stops this early, which covers clock rates and a slow write."""


class Ownership:
    """Keeps the leases of one relay.

    The lease runs from *before* the renewing call was sent, on a clock that never jumps, so this side always believes
    it ends no later than the database does. `proven` turns false before that; the send stage asks it for every batch.
    """

    def __init__(
        self,
        leases: OutboxLeases,
        relay: RelayId,
        *,
        ttl: timedelta,
        clock: Clock,
        observer: Observer,
        in_partition: Callable[[Partition], int],
        forget: Callable[[frozenset[Partition]], None],
        changed: Callable[[], None],
    ) -> None:
        self._leases = leases
        self._relay = relay
        self._ttl = ttl
        self._clock = clock
        self._observer = observer
        self._in_partition = in_partition
        self._forget = forget
        self._changed = changed
        self._claims: dict[Partition, LeaseToken] = {}
        self._draining: set[Partition] = set()
        self._proven_until = 0.0
        self._nudge = Signal()
        self._renewed = Signal()
        self.generation = 0
        """Grows whenever partitions were gained; the reader then starts over."""

    @property
    def claims(self) -> Claims:
        """Every partition held, those being drained included: terminal writes still count."""
        return self._claims

    @property
    def fetchable(self) -> Claims:
        """The partitions to read from: those held and not being handed over."""
        if not self._draining:
            return self._claims
        return {p: token for p, token in self._claims.items() if p not in self._draining}

    @property
    def proven(self) -> bool:
        """Whether the leases certainly still hold."""
        return self._clock.monotonic() < self._proven_until

    async def until_proven(self) -> None:
        """Wait for a heartbeat that the database took in time; what was lost meanwhile is no longer in `claims`."""
        while not self.proven:
            self.nudge()
            await self._renewed.wait()

    def nudge(self) -> None:
        """Look again now: something drained, or a write was refused."""
        self._nudge.set()

    def lose(self, partitions: frozenset[Partition], reason: str) -> None:
        """Another relay owns these now."""
        mine = partitions & self._claims.keys()
        if not mine:
            return
        for partition in mine:
            del self._claims[partition]
            self._draining.discard(partition)
        self._forget(mine)
        self._observer.notify(LeaseLost(partitions=frozenset(int(p) for p in mine), reason=reason))
        self._changed()

    async def run(self) -> None:
        """Keep the leases until cancelled. Outages of the database are waited out."""
        interval = self._ttl.total_seconds() / _BEATS_PER_LEASE
        while True:
            try:
                settled = await self._beat()
                pause = interval if settled else min(interval, 0.25)
            except StoreError as error:
                # Nothing to decide here: without renewal `proven` turns false by itself.
                if self._claims and not self.proven:
                    self._observer.notify(
                        LeaseLost(partitions=frozenset(int(p) for p in self._claims), reason=f"not renewed: {error}")
                    )
                pause = min(interval, 0.5)
            await self._nudge.wait(pause)

    async def _beat(self) -> bool:
        """One heartbeat; return whether the share is as it should be."""
        started = self._clock.monotonic()
        partitions = await self._leases.partition_count()
        beat = await self._leases.heartbeat(self._relay, dict(self._claims), ttl=self._ttl)
        self.lose(frozenset(self._claims) - beat.held, "the lease ran out, and another relay may take over")
        self._proven_until = started + self._ttl.total_seconds() * (1 - _MARGIN)
        self._renewed.set()
        share = -(-partitions // beat.alive)
        await self._hand_over(share)
        return await self._take(share)

    async def _hand_over(self, share: int) -> None:
        """Stop reading what is above the fair share; release it once nothing of it is in flight."""
        keeping = [p for p in self._claims if p not in self._draining]
        if len(keeping) > share:
            self._draining.update(keeping[share:])
            self._forget(frozenset(keeping[share:]))
        elif len(keeping) < share and self._draining:
            # A relay left while we were handing over: keep what has not been given away yet.
            for partition in list(self._draining)[: share - len(keeping)]:
                self._draining.discard(partition)
                self.generation += 1
        drained = frozenset(p for p in self._draining if not self._in_partition(p))
        if drained:
            await self._leases.release(self._relay, {p: self._claims[p] for p in drained})
            for partition in drained:
                del self._claims[partition]
            self._draining -= drained
            self._announce(gained=frozenset(), given_up=drained)

    async def _take(self, share: int) -> bool:
        """Claim free partitions up to the fair share."""
        missing = share - len(self._claims)
        if missing > 0:
            gained = await self._leases.claim(self._relay, want=missing)
            if gained:
                self._claims.update(gained)
                self.generation += 1
                self._announce(gained=frozenset(gained), given_up=frozenset())
        return not self._draining and (missing <= 0 or len(self._claims) == share)

    def _announce(self, *, gained: frozenset[Partition], given_up: frozenset[Partition]) -> None:
        self._observer.notify(
            LeasesChanged(
                owned=frozenset(int(p) for p in self._claims),
                gained=frozenset(int(p) for p in gained),
                given_up=frozenset(int(p) for p in given_up),
            )
        )
        self._changed()

    async def retire(self) -> None:
        """Give everything back at once, after draining."""
        await self._leases.retire(self._relay)
        self._claims.clear()
        self._draining.clear()
