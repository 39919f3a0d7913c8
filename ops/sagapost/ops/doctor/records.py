"""What the rows of the tables say of a system that is not well: leases, clocks, the dedup window, poison messages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, func, or_, select

from sagapost.core.clock import Clock
from sagapost.core.databases import aware, kit_of
from sagapost.core.findings import Diagnosis, Severity

if TYPE_CHECKING:
    from sagapost.inbox.declared.tables import InboxTables
    from sagapost.outbox.tables import OutboxTables

__all__ = ["clocks", "dedup_window", "leases", "poison"]

_SKEW: Final = timedelta(seconds=5)
_LARGE_SKEW: Final = timedelta(minutes=1)
_PRUNED_LATE: Final = 2
"""Keys outlive the window by a tenth and are pruned in turns; at twice its length nobody prunes."""


def clocks(connection: Connection, clock: Clock) -> Iterator[Diagnosis]:
    """Compare the clock of this host with the database's, by which leases, retries and schedules are judged."""
    before = clock.now()
    theirs = aware(connection.execute(select(kit_of(connection).now(clock))).scalar_one())
    ours = before + (clock.now() - before) / 2
    skew = ours - theirs
    if abs(skew) <= _SKEW:
        return
    which = "ahead of" if skew > timedelta(0) else "behind"
    yield Diagnosis(
        severity=Severity.ERROR if abs(skew) > _LARGE_SKEW else Severity.WARNING,
        code="clock",
        subject="clock of this host",
        evidence=f"it is {abs(skew).total_seconds():.1f} s {which} the database's: times of events are wrong, "
        "and events seem older or younger than the dedup window",
        remedy="timedatectl set-ntp true, on both hosts",
    )


def leases(connection: Connection, tables: OutboxTables) -> Iterator[Diagnosis]:
    """Look for partitions that nobody publishes although relays live, and for leases that vanished."""
    now = _now(connection)
    rows, relays = tables.leases.c, tables.relays.c
    count, highest = connection.execute(select(func.count(), func.max(rows.partition))).one()
    if count and highest + 1 != count:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="leases-missing",
            subject=tables.leases.name,
            evidence=f"{highest + 1 - count} of {highest + 1} partitions have no lease: the table was emptied by hand",
            remedy="start a relay: it makes them again when it claims partitions",
        )
    living = connection.execute(
        select(func.count()).select_from(tables.relays).where(relays.expires_at > now)
    ).scalar_one()
    owned = select(relays.relay).where(relays.expires_at > now)
    free = connection.execute(
        select(func.count()).select_from(tables.leases).where(or_(rows.owner.is_(None), rows.owner.not_in(owned)))
    ).scalar_one()
    if living and free:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="partitions-free",
            subject=tables.leases.name,
            evidence=f"{free} partitions have no owner although {living} relays live: their events wait. For some "
            "seconds that is so after each start and stop of a relay",
            remedy="look again; if it stays so, restart the relays and look at their logs",
        )


def dedup_window(connection: Connection, tables: InboxTables, window: timedelta) -> Iterator[Diagnosis]:
    """Look for redeliveries that came after the window, and for keys that nobody prunes."""
    now = _now(connection)
    for number, name in connection.execute(select(tables.consumers.c.id, tables.consumers.c.name)).all():
        seen, parked = tables.seen.c, tables.parked.c
        first = connection.execute(
            select(seen.seen_at).where(seen.consumer == number).order_by(seen.seen_at).limit(1)
        ).scalar_one_or_none()
        if first is not None and now - aware(first) > window * _PRUNED_LATE:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="not-pruned",
                subject=name,
                evidence=f"it remembers messages for {(now - aware(first)).days} days, and the dedup window is "
                f"{window.total_seconds() / 86_400:g}: no consumer of it has run for so long, or it cannot prune",
                remedy=f"sagapost consume MODULE:SERVICE, or delete its rows of {tables.seen.name} if it is gone",
                since=aware(first),
            )
        late, since = connection.execute(
            select(func.count(), func.min(parked.parked_at)).where(
                parked.consumer == number, parked.reason == "too-old"
            )
        ).one()
        if late:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="window-too-short",
                subject=name,
                evidence=f"{late} messages came after the dedup window and are parked: nobody knows whether they were "
                "handled before",
                remedy=f"sagapost parked list {name} --where reason=too-old; set SAGAPOST_CONSUMER_RETENTION above "
                "the longest redelivery",
                since=aware(since),
            )


def poison(connection: Connection, tables: InboxTables) -> Iterator[Diagnosis]:
    """Look for messages during which a process died, more than once or until they were parked."""
    attempts, parked, consumers = tables.attempts.c, tables.parked.c, tables.consumers.c
    begun = connection.execute(
        select(consumers.name, func.count(), func.max(attempts.started), func.min(attempts.last_started_at))
        .where(consumers.id == attempts.consumer, attempts.started > 1)
        .group_by(consumers.name)
    )
    for name, count, most, since in begun:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="crashes",
            subject=name,
            evidence=f"{count} messages were begun up to {most} times and never ended: the process dies over them",
            remedy="look at its log and its memory limit; the message is parked by itself after some more attempts",
            since=aware(since),
        )
    killed = connection.execute(
        select(consumers.name, func.count(), func.min(parked.parked_at))
        .where(consumers.id == parked.consumer, parked.reason == "killed-process")
        .group_by(consumers.name)
    )
    for name, count, since in killed:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="poison",
            subject=name,
            evidence=f"{count} messages are parked because the process died each time it handled them",
            remedy=f"sagapost parked list {name} --where reason=killed-process",
            since=aware(since),
        )


def _now(connection: Connection) -> datetime:
    from sagapost.core.clock import SystemClock

    return aware(connection.execute(select(kit_of(connection).now(SystemClock()))).scalar_one())
