"""Everything in flight in one service's database, held against the code that is about to run."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, inspect

from sagapost.inbox.declared.inbox import Inbox
from sagapost.outbox.tables import OutboxTables
from sagapost.sagas.inflight.code import Code
from sagapost.sagas.inflight.events import Taken, check_deadlines, check_outbox, check_parked, check_removed
from sagapost.sagas.inflight.findings import Collector, InFlightReport
from sagapost.sagas.inflight.recorded import check_intents, check_runs, check_tasks
from sagapost.sagas.inflight.tracked import check_expected
from sagapost.sagas.tracker.tables import TrackerTables

__all__ = ["check_expected_steps", "check_in_flight"]


def check_in_flight(
    connection: Connection, inboxes: Iterable[Inbox], *, elsewhere: Iterable[str] = (), deep: bool = True
) -> InFlightReport:
    """Name whatever is recorded in a database that these inboxes and their sagas could no longer handle.

    Intents, runs of islands and tasks, deadlines, events in the outbox, parked messages; and the steps that a tracker
    expects, if it is in the same database. Reads in the caller's transaction, a page at a time, and writes nothing.

    :param inboxes: every inbox of the deployment that uses this database, as the new code declares them.
    :param elsewhere: event types that other services take.
    :param deep: also read what was recorded (arguments, states, data), and not only its names.
    """
    code, found = Code(inboxes, elsewhere=elsewhere), Collector()
    taken = Taken(connection, code.inboxes)
    for inbox in code.inboxes:
        check_parked(connection, inbox, taken, found, deep=deep)
    for sagas in code.sagas.values():
        check_intents(connection, sagas, found, deep=deep)
        check_runs(connection, sagas, found, deep=deep)
        check_tasks(connection, sagas, code, found)
        check_deadlines(connection, sagas, code, found)
    for tables in _outboxes(code):
        check_outbox(connection, tables, code, taken, found, deep=deep)
        if deep:
            _check_tracker(connection, TrackerTables(schema=tables.schema, prefix=tables.prefix), code, found)
    check_removed(code, taken, found)
    return found.report()


def check_expected_steps(connection: Connection, tables: TrackerTables, inboxes: Iterable[Inbox]) -> InFlightReport:
    """Name the steps that a tracker in a database of its own expects and these inboxes could not take."""
    found = Collector()
    _check_tracker(connection, tables, Code(inboxes), found)
    return found.report()


def _outboxes(code: Code) -> list[OutboxTables]:
    """Return the tables that are published into, each once."""
    tables = [inbox.outbox.tables for inbox in code.inboxes if inbox.outbox is not None]
    return list({each.outbox.fullname: each for each in tables}.values())


def _check_tracker(connection: Connection, tables: TrackerTables, code: Code, found: Collector) -> None:
    if inspect(connection).has_table(tables.choreography.name, schema=tables.schema):
        check_expected(connection, tables, code, found)
