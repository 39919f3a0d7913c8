"""The outbox store port: what the relay needs of the database, and what it may rely on.

An adapter implements `OutboxStore` and passes `tests/conformance/outbox_store.py` with the capabilities it declares.
Tokens, leases, schedules and backoff are judged by the *database's* clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, NewType, Protocol, SupportsFloat, TypeAlias
from uuid import UUID

import msgspec

from sagapost.core.envelope import Event

__all__ = [
    "BuriedEvent",
    "Claims",
    "Doorbell",
    "DueEvents",
    "Failure",
    "FetchPage",
    "Heartbeat",
    "LeaseToken",
    "OutboxBacklog",
    "OutboxCapabilities",
    "OutboxGauge",
    "OutboxLeases",
    "OutboxReader",
    "OutboxRow",
    "OutboxSchedule",
    "OutboxSettlement",
    "OutboxStore",
    "OutboxSweeper",
    "Partition",
    "Position",
    "Published",
    "RelayId",
    "age_of",
]

Position = NewType("Position", int)
"""The row's place in the outbox: drawn from a sequence at insert; the order of causally related rows of a key."""

Partition = NewType("Partition", int)
LeaseToken = NewType("LeaseToken", int)
"""Fencing token: grows with every change of a partition's owner."""

RelayId = NewType("RelayId", UUID)
"""Identity of one relay process: fresh on every start, never a host or pod name."""


class OutboxRow(msgspec.Struct, frozen=True, gc=False):
    """One committed event that is not yet settled."""

    position: Position
    partition: Partition
    topic: str
    event: Event
    attempts: int = 0
    """How often the broker refused it; 0 for a row that was never refused."""
    retry_in: float = 0.0
    """Seconds until the next attempt is due, by the database's clock at fetch time; 0 or less: now."""
    unreadable: str | None = None
    """Why this row is no event that can be published (another writer wrote it): `event` then holds what could be read
    of it, without its data. The relay holds it, alone with its key, as if the broker had refused it."""


Published: TypeAlias = tuple[Position, str]
"""Position and event id of a row that was published: a server that took over may have drawn the position again."""

Claims = Mapping[Partition, LeaseToken]
"""The partitions a relay owns, each with the token it was granted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A refused row: to be recorded on the row, or moved with it to the dead letters."""

    position: Position
    partition: Partition
    reason: str
    retry_after: timedelta
    counts: bool = True
    """Whether it uses up one of the row's attempts. A row that is held always shows one at least."""


@dataclass(frozen=True, slots=True)
class OutboxBacklog:
    """How far behind the outbox is."""

    pending: int
    """Committed rows not yet settled (capped estimate on large tables where an exact count would scan)."""
    oldest_age: timedelta | None
    scheduled: int
    held: int
    dead: int


def age_of(seconds: SupportsFloat | None) -> timedelta | None:
    """Return an age that a database gave in seconds: never negative, and never more than a timedelta can say."""
    return None if seconds is None else timedelta(seconds=min(max(float(seconds), 0.0), 1e13))


@dataclass(frozen=True, slots=True)
class OutboxCapabilities:
    """What an adapter promises; suites skip by declaration."""

    concurrent_writers: bool
    """Several transactions may write at once, so sequence order differs from commit order."""
    many_relays: bool
    """Partitions can be shared between relays in several processes."""
    doorbell: bool
    """`wait_for_work` wakes on commit rather than on the poll interval alone."""


class BuriedEvent(NamedTuple):
    """A scheduled event that the outbox refused when it was due, and that is a dead letter now."""

    position: int
    """Of the dead letter: negative, for it never had a place in the outbox."""
    event_id: str
    event_type: str
    key: str | None
    reason: str


class DueEvents(NamedTuple):
    """What a look at the schedule did."""

    moved: int
    """Events that are in the outbox now."""
    upcoming: timedelta | None
    """How long until the next one is due; None: none is waiting."""
    buried: Sequence[BuriedEvent] = ()


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What a relay learns at a heartbeat."""

    alive: int
    """Relays that live now, itself included."""
    held: frozenset[Partition]
    """Its leases that still hold."""


class FetchPage(msgspec.Struct, frozen=True):
    """What one fetch found, in position order."""

    rows: Sequence[OutboxRow]
    caught_up: bool
    """Every row committed when this fetch began has now been returned."""
    writers_in_progress: bool = False
    """Transactions are open that may commit rows without ringing the doorbell: poll soon."""
    released: frozenset[str] = frozenset()
    """Keys asked for with `replay_key` whose rows come in order from this page on, its own rows included."""
    missing: frozenset[Position] = frozenset()
    """Rows asked for with `revisit` that no longer exist (an operator took them)."""


class OutboxReader(Protocol):
    """The fetch cursor of one relay. Stateful: used by one task at a time."""

    async def fetch(self, claims: Claims, *, max_rows: int, max_bytes: int) -> FetchPage:
        """Return the next committed rows of the claimed partitions, in position order.

        Guarantees, over the reader's life and as long as `claims` only grows through `restart`:

        * Each committed row is returned at least once and, unless it is asked for again, at most once.
        * A row that commits late is never skipped, whatever its position.
        * A row that cannot be read as an event is returned as `unreadable`, and disturbs no other.
        * Another server behind the same connection (a fail-over behind a pooler) makes it start over by itself.
        * If T1 committed before T2 inserted, T1's rows of a key are returned before T2's.
        * Cost follows the rows returned, not dead rows or transactions open elsewhere; at most `max_rows` rows and
          (give or take one row) `max_bytes` bytes of data are held, apart from revisited rows, which come extra.
          With `max_rows=0` only revisited rows are returned, and `caught_up` is False.
        * No transaction stays open after the call.

        :raises StoreUnavailableError: if the database cannot be reached; call `restart` before the next fetch.
        """
        ...

    def restart(self) -> None:
        """Forget the cursor: the next fetch starts from the oldest committed row of the claims.

        Called after gaining partitions, after an error, and when a sweeper found rows that were missed. Pending
        `revisit` and `replay_key` requests are dropped, since everything comes again; so do rows that are in flight,
        which the caller passes over.
        """
        ...

    def revisit(self, positions: Collection[Position]) -> None:
        """Return these rows again with the next fetch (a refused row whose retry is due)."""
        ...

    def replay_key(self, key: str, *, above: Position) -> None:
        """Return this key's rows with a position above the given one again, in order with what is new.

        Takes effect at a later fetch, which names the key in `released`; rows of the key returned by fetches before
        that one are to be ignored by the caller, they come again.
        """
        ...


class OutboxSweeper(Protocol):
    """Finds rows that a reader should have returned long ago and has not: the net below the cursor.

    No cursor can see a row that comes without a new transaction id or position: a restored dump, what logical
    replication applies, a row repaired by hand. On a connection of its own, so that it holds up no fetch.
    """

    async def mark(self) -> None:
        """Remember which rows are committed now."""
        ...

    async def left(self, claims: Claims, *, above: Position, limit: int) -> Sequence[tuple[Position, str | None]]:
        """Return the rows that were committed at the last `mark` and still are there, each with its key.

        At most `limit`, in position order, from beyond `above`; none before the first mark. Their data is not read.

        :raises StoreUnavailableError: if the database cannot be reached.
        """
        ...


class OutboxSettlement(Protocol):
    """The terminal writes. Each filters on the lease tokens it is given."""

    async def delete_published(self, rows: Mapping[Partition, Sequence[Published]], claims: Claims) -> int:
        """Delete confirmed rows, of partitions whose token still holds. Returns how many. Idempotent.

        Only where the position still holds that very event.

        :raises LeaseLostError: if a token no longer holds: rows of the *other* partitions were deleted.
        """
        ...

    async def record_failures(self, failures: Sequence[Failure], claims: Claims) -> None:
        """Keep on each row the reason and when it is due again; count an attempt where the failure `counts`.

        A row that the table refuses to keep (it breaks a rule that came later) is buried.

        :raises LeaseLostError: if a token no longer holds: rows of the *other* partitions were recorded.
        """
        ...

    async def bury(self, failures: Sequence[Failure], claims: Claims, *, block_keys: bool) -> int:
        """Move rows to the dead letters in one statement. Returns how many. Idempotent.

        A dead letter of former times at the same position is no conflict.

        `block_keys`: the dead letter holds back the later rows of its key until an operator decides.
        """
        ...

    async def bury_followers(self, key: str, partition: Partition, claims: Claims) -> int:
        """Move every row of a key behind its oldest dead letter (policy `park`). Returns how many.

        None are moved once that dead letter is gone: an operator has redriven or discarded it.
        """
        ...

    async def blocked_keys(self, claims: Claims) -> Mapping[str, tuple[Partition, Position]]:
        """Return the keys that wait for an operator because of a dead letter, with their oldest one's position."""
        ...


class OutboxSchedule(Protocol):
    """What becomes due later."""

    async def move_due(self, *, limit: int) -> DueEvents:
        """Move due scheduled events into the outbox, each exactly once among all relays.

        A row that the outbox refuses becomes a dead letter with the reason, and holds up no other.
        """
        ...


class OutboxLeases(Protocol):
    """Who owns which partition, and which relays live."""

    async def partition_count(self) -> int:
        """Return the number of partitions stored in the database; seeds the default number on first use."""
        ...

    async def heartbeat(self, relay: RelayId, claims: Claims, *, ttl: timedelta) -> Heartbeat:
        """Announce that this relay lives for `ttl` from now on, and with it every lease it holds.

        :param claims: the leases that it believes to hold. What is not in the answer any more belongs, or may soon
            belong, to others. A relay that was silent for longer than its `ttl` keeps at most what nobody has taken.
        """
        ...

    async def claim(self, relay: RelayId, *, want: int) -> Claims:
        """Claim up to `want` more partitions that no living relay holds. Returns those newly granted.

        They are held for as long as the relay lives by its last `heartbeat`. Leases that vanished (a truncated or
        restored table) are made again, with tokens higher than any before.
        """
        ...

    async def release(self, relay: RelayId, claims: Claims) -> None:
        """Give leases back at once, after draining them. Idempotent."""
        ...

    async def retire(self, relay: RelayId) -> None:
        """Take the relay out of the list of the living, with every lease it still has. Idempotent."""
        ...


class OutboxGauge(Protocol):
    """Figures for people and dashboards."""

    async def measure(self) -> OutboxBacklog:
        """Return how far behind the outbox is."""
        ...


class OutboxStore(Protocol):
    """The database side of the relay: a bundle of roles, of which each of its stages is given its own.

    Every method of a role is one short transaction; none is left open between calls.
    """

    @property
    def capabilities(self) -> OutboxCapabilities:
        """What this adapter promises."""
        ...

    @property
    def address(self) -> str:
        """Where it is, for logs and errors; without credentials."""
        ...

    @property
    def leases(self) -> OutboxLeases:
        """Who owns which partition."""
        ...

    @property
    def settlement(self) -> OutboxSettlement:
        """The terminal writes."""
        ...

    @property
    def schedule(self) -> OutboxSchedule:
        """What becomes due later."""
        ...

    @property
    def backlog(self) -> OutboxGauge:
        """How far behind it is."""
        ...

    def reader(self) -> AbstractAsyncContextManager[OutboxReader]:
        """Open a fetch cursor on a connection of its own."""
        ...

    def sweeper(self) -> AbstractAsyncContextManager[OutboxSweeper]:
        """Open a sweeper on a connection of its own."""
        ...

    def doorbell(self) -> AbstractAsyncContextManager[Doorbell]:
        """Open the wake-up channel (a connection of its own where the database has one)."""
        ...

    async def check_schema(self) -> None:
        """Verify that the tables are there and of this release.

        :raises SchemaError: otherwise.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections this store opened. Idempotent."""
        ...


class Doorbell(Protocol):
    """Wakes an idle relay when a writer commits. A hint only: polling stays on underneath."""

    async def arm(self) -> None:
        """Announce that this relay is about to sleep; fetch once more after this returns, then `wait`."""
        ...

    async def wait(self, timeout: float) -> bool:
        """Sleep until rung or `timeout` seconds passed; return whether it rang."""
        ...

    async def disarm(self) -> None:
        """Announce that this relay is awake, so that writers need not ring."""
        ...
