"""One look at everything: what is broken is found, whatever else is broken too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from sagapost.core.clock import Clock, SystemClock
from sagapost.core.databases import kit_of
from sagapost.core.drift import drift
from sagapost.core.errors import BrokerError, SagapostError
from sagapost.core.findings import Diagnosis, Severity
from sagapost.ops import database
from sagapost.ops.adapters import make_broker
from sagapost.ops.doctor import records
from sagapost.ops.doctor.complaints import diagnosis_of
from sagapost.ops.registry import brokers
from sagapost.ops.status.seen import look
from sagapost.ops.status.verdict import Thresholds, complaints
from sagapost.ops.tables import tables_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sagapost.core.findings import Patience
    from sagapost.core.schema import SchemaPart
    from sagapost.inbox.declared.inbox import Inbox
    from sagapost.ops.settings import LoadedSettings
    from sagapost.ops.tables import Tables

__all__ = ["diagnose"]


async def diagnose(
    loaded: LoadedSettings,
    inboxes: Sequence[Inbox] = (),
    *,
    allowed: Thresholds | None = None,
    patience: Patience | None = None,
    clock: Clock | None = None,
) -> list[Diagnosis]:
    """Return what is wrong, the gravest first. Changes nothing.

    :param inboxes: the code that is to run, held against what is in flight.
    :param allowed: what `sagapost status` takes for well.
    :param patience: what is taken for normal on the server.
    :raises StoreUnavailableError: if the database cannot be reached.
    """
    tables = tables_of(loaded.settings, with_tracker=True)
    found = [_misspelt(hint) for hint in loaded.hints]
    async with database.connect(loaded) as connection:
        found += await connection.run_sync(lambda sync: _database(sync, loaded, tables, inboxes, patience, clock))
    # It has connections of its own, and would wait where others do.
    if not any(each.code in _IN_THE_WAY for each in found):
        found += await _status(loaded, allowed if allowed is not None else Thresholds(), inboxes)
    return sorted(found, key=lambda each: (each.severity.rank, each.code, each.subject))


_IN_THE_WAY = frozenset({"version", "table", "column", "lock", "unreadable"})
"""What keeps `sagapost status` from looking."""


def _database(
    connection: Connection,
    loaded: LoadedSettings,
    tables: Tables,
    inboxes: Sequence[Inbox],
    patience: Patience | None,
    clock: Clock | None,
) -> list[Diagnosis]:
    found, whole = _catalogue(connection, loaded, tables, patience)
    looks: list[Callable[[], Iterable[Diagnosis]]] = [
        lambda: records.clocks(connection, clock if clock is not None else SystemClock())
    ]
    if "outbox" in whole:
        looks.append(lambda: records.leases(connection, tables.outbox))
        looks.append(lambda: database.examine_outbox(connection, loaded, tables))
    if "inbox" in whole:
        looks.append(lambda: records.dedup_window(connection, tables.inbox, loaded.settings.consumer.retention))
        looks.append(lambda: records.poison(connection, tables.inbox))
    if inboxes:
        looks.append(lambda: _in_flight(connection, inboxes))
    for each in looks:
        found += _look(connection, each)
    return found


def _look(connection: Connection, look_at: Callable[[], Iterable[Diagnosis]]) -> list[Diagnosis]:
    """Return what one look finds. That it fails is something found, and keeps no other from looking."""
    try:
        with connection.begin_nested():
            return list(look_at())
    except DBAPIError as error:
        return [_unreadable(kit_of(connection).sentence(error, where=database.address_of(connection.engine.url)))]


def _catalogue(
    connection: Connection, loaded: LoadedSettings, tables: Tables, patience: Patience | None
) -> tuple[list[Diagnosis], frozenset[str]]:
    """Return what is wrong with server and tables, and which parts are there and can be read."""
    found = _look(connection, lambda: database.examine(connection, loaded, tables, patience=patience))
    hidden = any(each.code == "privilege" and "SELECT" in each.evidence for each in found)
    whole = set[str]()
    for part in tables.parts:
        look_at = partial(drift, connection, tables.versions, part, required=part.name == "outbox")
        here = _look(connection, look_at)
        found += here
        broken = hidden or any(each.code in ("version", "table", "column", "unreadable") for each in here)
        if not broken and _installed(connection, part):
            whole.add(part.name)
    return found, frozenset(whole)


def _installed(connection: Connection, part: SchemaPart) -> bool:
    inspector = inspect(connection)
    return any(inspector.has_table(table.name, schema=table.schema) for table in part.tables)


async def _status(loaded: LoadedSettings, allowed: Thresholds, inboxes: Sequence[Inbox]) -> list[Diagnosis]:
    try:
        seen = await look(loaded, examples=5)
    except SagapostError as error:
        return [_unreadable(str(error))]
    found = [diagnosis_of(each) for each in complaints(seen, allowed)]
    if seen.broker is not None and seen.broker.problem is None:
        found += await _broker(loaded, dict.fromkeys(seen.inboxes) | {each.name: each for each in inboxes})
    return found


async def _broker(loaded: LoadedSettings, inboxes: Mapping[str, Inbox | None]) -> list[Diagnosis]:
    examine = brokers.find(loaded.broker_url.scheme).examine
    if examine is None:
        return []
    queues = {
        name if inbox is None else inbox.queue.name: None if inbox is None else inbox.queue.ordered
        for name, inbox in inboxes.items()
    }
    try:
        return list(await examine(make_broker(loaded), queues))
    except BrokerError as error:
        return [_unreadable(str(error))]


def _unreadable(sentence: str) -> Diagnosis:
    return Diagnosis(
        severity=Severity.ERROR,
        code="unreadable",
        subject="tables",
        evidence=sentence,
        remedy="mend what it says, and look again: the rest may be wrong too",
    )


def _misspelt(hint: str) -> Diagnosis:
    return Diagnosis(
        severity=Severity.ADVICE,
        code="unknown-setting",
        subject="environment",
        evidence=hint,
        remedy="rename or remove it; `sagapost config` shows what is in force",
    )


def _in_flight(connection: Connection, inboxes: Sequence[Inbox]) -> Iterable[Diagnosis]:
    from sagapost.sagas.inflight import check_in_flight

    for each in check_in_flight(connection, inboxes).findings:
        sagas = f" (sagas {', '.join(each.sagas)})" if each.sagas else ""
        yield Diagnosis(
            severity=each.severity,
            code=f"in-flight-{each.kind}",
            subject=f"{each.service}: {each.subject}",
            evidence=f"{each.message}; {each.count} in flight{sagas}",
            remedy=each.remedy,
        )
