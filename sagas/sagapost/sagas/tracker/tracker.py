"""`Tracker`: folds events into the tracker's database, and answers where a saga is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, Unpack

import anyio
import msgspec
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.core.clock import Clock, SystemClock
from sagapost.core.databases import Other
from sagapost.core.envelope import Event
from sagapost.core.errors import StoreUnavailableError
from sagapost.core.ids import new_id
from sagapost.core.observer import Observer
from sagapost.core.schema import check_schema, install_schema
from sagapost.core.where import Selection
from sagapost.inbox.kept.database import Database
from sagapost.sagas.choreography.manifest import Choreography
from sagapost.sagas.tracker.business_keys import Keys
from sagapost.sagas.tracker.derive import derive
from sagapost.sagas.tracker.differences import Difference, differences
from sagapost.sagas.tracker.entries import Entry, entry_of, moment
from sagapost.sagas.tracker.history import History
from sagapost.sagas.tracker.intake import Arrival, Reader, halves, reason_of
from sagapost.sagas.tracker.listing import SagaRow, saga_row
from sagapost.sagas.tracker.observations import PassedOver
from sagapost.sagas.tracker.route import Declared, Route, read_declared
from sagapost.sagas.tracker.settings import TrackerSettings
from sagapost.sagas.tracker.store import Kept, TrackerStore, Wanted, packed
from sagapost.sagas.tracker.tables import TrackerTables
from sagapost.sagas.tracker.view import SagaState, SagaView

__all__ = ["Tracker"]

T = TypeVar("T")

_ROUNDS = 20
_PAGE = 200
_OBSERVED = 20_000
"""Pairs of source and type kept in memory, so that they are not written again."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Arrivals as the statements take them."""

    entries: dict[str, list[Entry]]
    keys: set[tuple[str, str, str]]
    """(saga, name, value)."""
    observed: dict[tuple[str, str], tuple[str, datetime]]
    """(source, type) that is perhaps seen for the first time -> saga and time."""

    @classmethod
    def of(cls, arrivals: Iterable[Arrival], known: Set[tuple[str, str]]) -> _Batch:
        batch = cls({}, set(), {})
        for arrival in arrivals:
            saga, entry = arrival.saga, arrival.entry
            batch.entries.setdefault(saga, []).append(entry)
            if arrival.keys:
                batch.keys.update((saga, name, value) for name, value in arrival.keys)
            place = (entry.source, entry.type)
            if place not in known and place not in batch.observed:
                batch.observed[place] = (saga, arrival.time)
        return batch


def cause_of(error: Exception) -> Exception:
    """Return what the database said, where it said something."""
    cause = error.__cause__ if isinstance(error, StoreUnavailableError) else None
    return cause if isinstance(cause, Exception) else error


def _probe(now: datetime) -> Arrival:
    """Return an arrival in which nothing is wrong."""
    entry = entry_of(Event(id=new_id(), source="urn:sagapost:tracker", type="probe", time=now))
    return Arrival(new_id(), entry, now, frozenset())


class Tracker:
    """Folds events into the tracker's database, and answers where a saga is. PostgreSQL or SQLite.

    Folding is idempotent and independent of order. Several trackers may fold into one database at once: a write that
    was computed from an outdated row changes nothing and is computed again.

    :param engine: the tracker's own database.
    :param choreography: what the services declare; without it there are no expected steps and no deadlines.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        choreography: Choreography | None = None,
        *,
        tables: TrackerTables | None = None,
        settings: TrackerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.tables = tables if tables is not None else TrackerTables()
        self.settings = settings if settings is not None else TrackerSettings()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.choreography = choreography
        self.database = Database(engine, concurrency=1, timeout=self.settings.timeout)
        self._route = Route.of(choreography, ends=self.settings.ends)
        self._reader = Reader(Keys(self.settings.keys), self._route.starts)
        self._store = TrackerStore(self.tables, self.database.kit)
        self._cache: OrderedDict[str, Kept] = OrderedDict()
        self._observed: set[tuple[str, str]] = set()
        self._folding = anyio.Lock()

    async def install(self) -> None:
        """Create the tables, where they are missing. A deployment uses `sagapost db upgrade`."""
        await self.database.run(
            lambda connection: install_schema(connection, self.tables.versions, [self.tables.part])
        )

    async def check(self) -> None:
        """Verify that the tables are there and of this release.

        :raises SchemaError: otherwise.
        """
        await self.database.run(
            lambda connection: check_schema(
                connection, self.tables.versions, self.tables.part, where=f"The database at {self.database.address}"
            )
        )

    def take_turn(self, connection: Connection) -> None:
        """On SQLite: become the only writer before anything is read that decides what is written."""
        self._store.take_turn(connection)

    def is_outage(self, error: Exception) -> bool:
        """Return whether the database could not serve: what failed would have, whatever it was about."""
        if not isinstance(error, StoreUnavailableError):
            return False
        return error.__cause__ is None or not isinstance(self.database.kit.classify(error.__cause__), Other)

    # --- folding ---

    async def fold(self, events: Iterable[Event], *, observer: Observer | None = None) -> int:
        """Fold events, in one transaction; return how many sagas changed. What is known already changes nothing.

        When it returns, the events are durable in the tracker's database and may be acknowledged, but for those that
        cannot be folded, whatever the reason: each of them alone is left out, and reported as `PassedOver`.

        :param observer: what is told of events that are passed over.
        :raises StoreUnavailableError: if the database cannot take them now; fold them again later.
        """
        intake = self._reader.read(events)
        changed = 0
        if intake.arrivals:
            async with self._folding:
                changed = await self._fold_what_can_be(intake.arrivals, intake.passed_over)
        if observer is not None:
            for report in intake.passed_over:
                observer.notify(report)
        return changed

    async def _fold_what_can_be(self, arrivals: Sequence[Arrival], passed_over: list[PassedOver]) -> int:
        """Fold a batch; if it is refused, look for what in it is to blame, half by half, and fold all the rest."""
        try:
            return await self._write(arrivals)
        except Exception as error:
            if self.is_outage(error):
                raise
            if len(arrivals) > 1:
                return sum([await self._fold_what_can_be(half, passed_over) for half in halves(arrivals)])
            # Is it the event? If nothing at all can be folded, it is the tracker or its database.
            await self._write([_probe(self.clock.now())], keep=False)
            passed_over.append(arrivals[0].left_out(reason_of(cause_of(error))))
            return 0

    async def _write(self, arrivals: Sequence[Arrival], *, keep: bool = True) -> int:
        """Fold a batch in one transaction; return how many sagas changed.

        :param keep: False: undo it at the end.
        """
        batch = _Batch.of(arrivals, self._observed)
        for _ in range(_ROUNDS):
            try:
                changed = await self._run(lambda connection: self._fold(connection, batch, keep=keep))
            except StoreUnavailableError as error:
                if not self.database.kit.is_conflict(error):
                    raise
                continue
            if changed is not None:
                if keep:
                    self._remember(changed)
                    self._remember_observed(batch.observed)
                return len(changed)
        raise self.database.unavailable(TimeoutError("other trackers change the same sagas all the time"))

    def _remember_observed(self, observed: Iterable[tuple[str, str]]) -> None:
        """Note what is written down for good. A producer may make up types without end; then it is asked again."""
        if len(self._observed) > _OBSERVED:
            self._observed.clear()
        self._observed.update(observed)

    def _remember(self, changed: Mapping[str, Kept]) -> None:
        """Keep what is committed for the next batch; the sagas that were quiet the longest go."""
        for saga, kept in changed.items():
            self._cache[saga] = kept
            self._cache.move_to_end(saga)
        while len(self._cache) > self.settings.cached_sagas:
            self._cache.popitem(last=False)

    def _fold(self, connection: Connection, batch: _Batch, *, keep: bool) -> dict[str, Kept] | None:
        """Fold in a transaction; return the changed rows, or None if another tracker came in between."""
        store = self._store
        store.take_turn(connection)
        # Where an outdated write would not be noticed, rows are always read.
        cached = self._cache if store.notices_others else {}
        unknown = [saga for saga in batch.entries if saga not in cached]
        loaded = store.load(connection, unknown) if unknown else {}
        changed: dict[str, Kept] = {}
        rows: list[dict[str, Any]] = []
        horizon = self.clock.now() - self.settings.silent_retention
        for saga, arrived in batch.entries.items():
            kept = cached.get(saga) or loaded.get(saga)
            before = kept.history if kept is not None else History()
            after = before.merge(arrived, limit=self.settings.max_events)
            # Of an unknown saga from before the horizon the beginning is forgotten: what is left would mislead.
            if after is before or (kept is None and moment(after.entries[-1].at) < horizon):
                continue
            version = kept.version + 1 if kept is not None else 1
            changed[saga] = Kept(version, after)
            rows.append(self._row(saga, version, after))
        if rows:
            written = store.write(connection, rows)
            if len(written) < len(rows):
                connection.rollback()
                for row in rows:
                    if row["saga"] not in written:
                        self._cache.pop(row["saga"], None)
                return None
            known = sorted(key for key in batch.keys if key[0] in changed)
            fresh = [{"value": value, "saga": saga, "name": name} for saga, name, value in known]
            if fresh:
                store.note_keys(connection, fresh)
        # It is forgotten with its saga; of one that is forgotten already there is nothing to note.
        for place, (saga, _) in list(batch.observed.items()):
            if not (saga in changed or saga in loaded or saga in cached):
                del batch.observed[place]
        if batch.observed:
            store.note_observed(
                connection,
                [
                    {"source": source, "type": type_, "saga": saga, "first_at": at}
                    for (source, type_), (saga, at) in sorted(batch.observed.items())
                ],
            )
        if not keep:
            connection.rollback()
        return changed

    def _row(self, saga: str, version: int, history: History) -> dict[str, Any]:
        view = derive(saga, history, self._route)
        return {
            "saga": saga,
            "state": view.state.value,
            "reason": view.reason,
            "started_at": view.started,
            "last_at": view.last,
            "ended_at": view.ended,
            "due_at": view.deadlines[0].due if view.deadlines else None,
            "events": len(history.entries),
            "truncated": history.truncated,
            "history": packed(history),
            "version": version,
        }

    async def refold(self, *, observer: Observer | None = None) -> int:
        """Derive every saga anew from its history, after the choreography or the release changed; return how many.

        Folding may go on meanwhile. A saga that cannot be derived keeps the row that it has, and is reported.

        :param observer: what is told of sagas that are passed over.
        """
        last, count = "", 0
        while True:
            names = await self._run(partial(self._store.names_after, saga=last, limit=_PAGE))
            if not names:
                return count
            last = names[-1]
            count += await self._refold_what_can_be(names, observer)

    async def _refold_what_can_be(self, names: Sequence[str], observer: Observer | None) -> int:
        try:
            await self._run(lambda connection: self._refold(connection, names))
        except Exception as error:
            if self.is_outage(error):
                raise
            if len(names) > 1:
                return sum([await self._refold_what_can_be(half, observer) for half in halves(names)])
            if observer is not None:
                observer.notify(PassedOver(None, None, names[0], "saga", reason_of(cause_of(error))))
            return 0
        return len(names)

    def _refold(self, connection: Connection, names: Sequence[str]) -> None:
        store = self._store
        store.take_turn(connection)
        loaded = store.load(connection, names)
        # A row that somebody else folds into meanwhile was derived by them.
        store.write(connection, [self._row(saga, kept.version + 1, kept.history) for saga, kept in loaded.items()])

    async def adopt(self, *, observer: Observer | None = None) -> int:
        """Derive every saga anew if the choreography is another than that of the last time; return how many.

        `sagapost track` does this at its start. Cut off half-way, it is done again.
        """
        services = self.choreography.services if self.choreography is not None else ()
        declared = msgspec.json.encode(Declared(services, self.settings.ends), order="deterministic")
        if await self._run(self._store.declared) == declared:
            return 0
        count = await self.refold(observer=observer)
        await self._run(lambda connection: self._store.declare(connection, declared))
        return count

    async def recall(self) -> None:
        """Take the choreography that the rows were derived with, so that `show` says what the lists say."""
        declared = await self._run(self._store.declared)
        if declared is not None:
            self._route = read_declared(declared)
            self.choreography = self._route.choreography
            self._reader = Reader(Keys(self.settings.keys), self._route.starts)

    async def prune(self, *, chunk: int = 500) -> int:
        """Forget sagas that ended or fell silent long ago; return how many. Small transactions, one after another."""
        total = 0
        while True:
            now = self.clock.now()
            ended, silent = now - self.settings.retention, now - self.settings.silent_retention
            gone = await self._run(partial(self._forget, ended=ended, silent=silent, chunk=chunk))
            total += gone
            if gone < chunk:
                self._cache.clear()
                # Whoever forgets a saga, here or in another process, forgets what was observed in it.
                self._observed.clear()
                return total

    def _forget(self, connection: Connection, ended: datetime, silent: datetime, chunk: int) -> int:
        self._store.take_turn(connection)
        return self._store.forget(connection, ended_before=ended, silent_before=silent, limit=chunk)

    # --- asking ---

    async def show(self, saga: str) -> SagaView | None:
        """Return where a saga is; None if nothing is known of it."""

        def read(connection: Connection) -> tuple[History | None, list[tuple[str, str]]]:
            return self._store.show(connection, saga), self._store.keys_of(connection, [saga]).get(saga, [])

        history, keys = await self._run(read)
        if history is None:
            return None
        return replace(derive(saga, history, self._route), keys=tuple(keys))

    async def find(self, value: str, *, name: str | None = None, limit: int = 100) -> list[str]:
        """Return the sagas with a business key, for example ``find("4711")`` or ``find("4711", name="order_id")``."""
        return await self._run(lambda connection: self._store.find(connection, value, name=name, limit=limit))

    async def sagas(
        self,
        *,
        states: Iterable[SagaState] = (),
        late: bool = False,
        selection: Selection | None = None,
        before: SagaRow | None = None,
        limit: int = 100,
    ) -> list[SagaRow]:
        """Return sagas, those that started last first.

        :param states: only of these; default: all.
        :param late: only those with a deadline that has passed.
        :param selection: of `SAGAS`: only those that are meant.
        :param before: the last row of the page before this one.
        """
        wanted = [state.value for state in states]
        due = self.clock.now() if late else None

        return await self._run(
            lambda connection: self._listed(
                connection,
                states=wanted,
                due_before=due,
                selection=selection,
                before=(before.started, before.saga) if before is not None else None,
                limit=limit,
            )
        )

    async def row(self, saga: str) -> SagaRow | None:
        """Return a saga as a line of a list, as it was last written; None if nothing is known of it."""
        found = await self._run(lambda connection: self._listed(connection, saga=saga))
        return found[0] if found else None

    def _listed(self, connection: Connection, **wanted: Unpack[Wanted]) -> list[SagaRow]:
        rows = self._store.rows(connection, **wanted)
        keys = self._store.keys_of(connection, [row["saga"] for row in rows])
        return [saga_row(row, keys.get(row["saga"], ())) for row in rows]

    async def counts(self) -> dict[SagaState, int]:
        """Return how many sagas are in each state."""
        found = await self._run(self._store.count)
        return {SagaState(state): count for state, count in found.items()}

    async def differences(self) -> list[Difference]:
        """Compare what was observed with what is declared."""
        seen = await self._run(self._store.observed)
        return differences(seen, self._route)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        return await self.database.run(work)
