"""What is particular to ORM sessions: flushes, joined transactions, hooks, and how many statements are sent."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Delete, Engine, Insert, create_engine, event, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, registry, scoped_session, sessionmaker

from sagapost.core.errors import ConfigurationError, NotInTransactionError
from sagapost.outbox import Outbox, OutboxTables
from sagapost.outbox.session import PendingRows
from tests.outbox.write.service import Database, Order, listening, outbox, placed, tables


class Zebra:
    """An aggregate in the table of orders, of a module whose name sorts behind ours."""

    __module__ = "zoo.models"

    id: int
    status: str


registry().map_imperatively(Zebra, Order.__table__)


# --- flushes ---


def test_publishing_sends_nothing_and_flushes_nothing(database: Database) -> None:
    """The caller's pending objects are still pending, and not even a connection was taken."""
    with Session(database.engine) as session:
        order = Order(id=1)
        session.add(order)
        outbox.publish(session, placed(1))
        outbox.publish_all(session, [placed(2), placed(3)])
        assert order in session.new
        assert database.statements == []


def test_events_of_one_flush_are_one_insert_after_the_domain_rows(database: Database) -> None:
    """One more round trip for the transaction, however many events it publishes."""
    with Session(database.engine) as session, session.begin():
        for n in range(1, 6):
            outbox.publish(session, placed(n))
            session.add(Order(id=n))
    assert database.sent("INSERT", "UPDATE") == ["INSERT INTO orders", "INSERT INTO outbox"]
    assert database.events() == [1, 2, 3, 4, 5]


def test_the_event_is_written_after_the_row_lock_is_taken(database: Database) -> None:
    """The position is drawn under the lock of the aggregate's row, also if the model sorts behind PendingRows.

    Mappers without a relationship are flushed in the order of their modules and names. Written by its mapper, the
    event of a model in `zoo.models` would be inserted before the UPDATE that makes its writers take turns.
    """
    with Session(database.engine) as session, session.begin():
        session.add(Order(id=1))
    database.statements.clear()
    with Session(database.engine) as session, session.begin():
        session.get_one(Zebra, 1).status = "paid"
        outbox.publish(session, placed(1))
    assert database.sent("INSERT", "UPDATE") == ["UPDATE orders", "INSERT INTO outbox"]


def test_an_autoflush_writes_what_was_published_so_far(database: Database) -> None:
    """A query between two events costs one more INSERT, and keeps their order."""
    with Session(database.engine) as session, session.begin():
        outbox.publish(session, placed(1))
        session.scalars(select(Order)).all()
        outbox.publish(session, placed(2))
    assert database.sent("INSERT") == ["INSERT INTO outbox", "INSERT INTO outbox"]
    assert database.events() == [1, 2]


def test_a_clean_session_publishes(database: Database) -> None:
    """An event without any change is written, though flush hooks are skipped for clean sessions."""
    with Session(database.engine) as session, session.begin():
        outbox.publish(session, placed(1))
    assert database.events() == [1]


def test_a_bulk_update_and_its_event_share_the_transaction(database: Database) -> None:
    """Bulk statements bypass the unit of work; the event does not."""
    for commit, expected in ((False, []), (True, [1])):
        with Session(database.engine) as session:
            session.execute(update(Order).values(status="archived"))
            outbox.publish(session, placed(1))
            if commit:
                session.commit()
        assert database.events() == expected


def test_a_session_with_autoflush_off_publishes(database: Database) -> None:
    """The commit flushes in any case."""
    with Session(database.engine, autoflush=False) as session, session.begin():
        outbox.publish(session, placed(1))
    assert database.events() == [1]


def test_a_session_is_used_transaction_after_transaction(database: Database) -> None:
    """Nothing is carried over, and nothing is written twice."""
    with Session(database.engine) as session:
        for n in (1, 2, 3):
            outbox.publish(session, placed(n))
            session.commit()
        outbox.publish(session, placed(4))
        session.rollback()
        outbox.publish(session, placed(5))
        session.commit()
        session.commit()
    assert database.events() == [1, 2, 3, 5]


def test_a_failed_flush_leaves_nothing_behind(database: Database) -> None:
    """After the rollback the session publishes only what is published then."""
    with Session(database.engine) as session, session.begin():
        session.add(Order(id=1))
    with Session(database.engine) as session:
        session.add(Order(id=1))
        outbox.publish(session, placed(1))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        session.add(Order(id=2))
        outbox.publish(session, placed(2))
        session.commit()
    assert database.orders() == [1, 2]
    assert database.events() == [2]


def test_a_failed_flush_in_a_savepoint_takes_only_its_own(database: Database) -> None:
    """The events before the savepoint are kept, those inside it are not."""
    with Session(database.engine) as session, session.begin():
        session.add(Order(id=1))
        outbox.publish(session, placed(1))
        with pytest.raises(IntegrityError), session.begin_nested():  # noqa: PT012 - the block is the savepoint
            outbox.publish(session, placed(99))
            session.flush()
            session.connection().execute(insert(Order).values(id=1, status="again"))
        outbox.publish(session, placed(2))
    assert database.events() == [1, 2]


def test_events_are_not_held_in_memory_after_the_commit(database: Database) -> None:
    """A session that lives on does not keep what it wrote."""
    gc.collect()
    with Session(database.engine, expire_on_commit=False) as session:
        for n in range(20):
            outbox.publish(session, placed(n))
            session.commit()
        gc.collect()
        assert not [o for o in session.identity_map.values() if isinstance(o, PendingRows)]


# --- joined transactions ---


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully", "create_savepoint"])
@pytest.mark.parametrize("commit", [True, False])
def test_a_session_joined_to_an_outer_transaction(database: Database, mode: Any, commit: bool) -> None:
    """The outer transaction decides, whatever the session does to join it."""
    with database.engine.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:
            session.add(Order(id=1))
            outbox.publish(session, placed(1))
            session.commit()
        if transaction.is_active:
            transaction.commit() if commit else transaction.rollback()
    # control_fully hands the transaction to the session, whose commit was the end of it.
    expected = [1] if commit or mode == "control_fully" else []
    assert database.orders() == expected
    assert database.events() == expected


@pytest.mark.parametrize("domain", [True, False])
def test_a_joined_session_that_only_flushes(database: Database, domain: bool) -> None:
    """Without a commit of the session the flush writes the event, also if the event is all there is to flush."""
    with database.engine.connect() as connection, connection.begin():
        session = Session(connection)
        if domain:
            session.add(Order(id=1))
        outbox.publish(session, placed(1))
        session.flush()
        session.expunge_all()
    session.close()
    assert database.events() == [1]


def test_the_release_of_a_savepoint_is_not_a_commit(database: Database) -> None:
    """before_commit fires for both; the event must not outlive the transaction."""
    with Session(database.engine) as session:
        with session.begin_nested():
            session.add(Order(id=1))
            outbox.publish(session, placed(1))
        session.rollback()
    assert database.events() == []


@pytest.mark.servers
@pytest.mark.parametrize("commit", [True, False])
def test_a_two_phase_session(on_two_phase: Database, commit: bool) -> None:
    """The event is prepared with the rest, and committed or rolled back with it."""
    database = on_two_phase
    session = Session(database.engine, twophase=True)
    session.add(Order(id=1))
    outbox.publish(session, placed(1))
    session.prepare()
    assert database.events() == []
    session.commit() if commit else session.rollback()
    session.close()
    assert database.orders() == ([1] if commit else [])
    assert database.events() == ([1] if commit else [])


# --- hooks of others ---


def test_a_hook_that_publishes_before_the_flush(database: Database) -> None:
    """Audit hooks add rows and events in before_flush; they go out with this flush, once."""

    def audit(session: Session, *_: Any) -> None:
        if any(isinstance(o, Order) for o in session.new):
            outbox.publish(session, placed(100))

    with Session(database.engine) as session, listening(session, "before_flush", audit):
        session.add(Order(id=1))
        outbox.publish(session, placed(1))
        session.commit()
    assert database.events() == [1, 100]
    assert database.sent("INSERT") == ["INSERT INTO orders", "INSERT INTO outbox"]


@pytest.mark.parametrize("first", [True, False])
def test_a_hook_that_publishes_after_the_flush(database: Database, first: bool) -> None:
    """It waits for the next flush of the same commit, and is written once, before our hook or after it."""
    published: list[int] = []

    def follow_up(session: Session, *_: Any) -> None:
        if not published:
            published.append(100)
            outbox.publish(session, placed(100))

    # Listeners of the class run before those of a session, and ours is one of the class.
    event.listen(Session, "after_flush", follow_up, insert=first)
    try:
        with Session(database.engine) as session, session.begin():
            session.add(Order(id=1))
            outbox.publish(session, placed(1))
    finally:
        event.remove(Session, "after_flush", follow_up)
    assert database.events() == [1, 100]


def test_a_hook_that_publishes_before_the_commit(database: Database) -> None:
    """Also for a session that would have nothing to flush."""

    def last_word(session: Session) -> None:
        outbox.publish(session, placed(100))

    with Session(database.engine) as session, listening(session, "before_commit", last_word):
        session.connection()
        session.commit()
    assert database.events() == [100]


# --- binds ---


def test_a_session_bound_per_table(database: Database) -> None:
    """Without a bind of its own a session finds the engine by the outbox table."""
    with Session(binds={Order: database.engine, tables.outbox: database.engine}) as session, session.begin():
        session.add(Order(id=1))
        outbox.publish(session, placed(1))
    assert database.events() == [1]


def test_a_session_that_does_not_know_the_outbox_says_so_at_once(database: Database) -> None:
    """Not at the flush, where nobody sees who published."""
    with Session(binds={Order: database.engine}) as session, pytest.raises(ConfigurationError, match="'outbox'"):
        outbox.publish(session, placed(1))


def test_a_session_that_routes_by_itself(database: Database) -> None:
    """A subclass that chooses engines keeps choosing."""
    asked: list[Any] = []

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **kw: Any) -> Engine | Connection:
            asked.append(mapper)
            return database.engine

    with Routing() as session, session.begin():
        session.add(Order(id=1))
        outbox.publish(session, placed(1))
    assert database.events() == [1]
    assert asked


def test_a_session_with_a_leader_and_followers(database: Database) -> None:
    """What writes asks for an engine by what it executes, so that SQLAlchemy's recipe sends it to the leader."""
    follower = create_engine("sqlite://", isolation_level="AUTOCOMMIT")

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **kw: Any) -> Engine | Connection:
            return database.engine if self._flushing or isinstance(clause, Insert | Delete) else follower

    with Routing() as session, session.begin():
        outbox.publish(session, placed(1))
        later = outbox.publish(session, placed(2), deliver_at=datetime.now(UTC) + timedelta(hours=1))
    with Routing() as session, session.begin():
        assert outbox.cancel(session, event_id=later.id) == 1
    follower.dispose()
    assert (database.events(), database.scheduled()) == ([1], [])


def test_two_outboxes_in_one_session(database: Database) -> None:
    """Each writes into its own table, by one INSERT each."""
    other_tables = OutboxTables(prefix="other_")
    other = Outbox(source="https://other.example", tables=other_tables)
    with database.engine.begin() as connection:
        other_tables.metadata.create_all(connection)
    database.statements.clear()
    with Session(database.engine) as session, session.begin():
        outbox.publish(session, placed(1))
        other.publish(session, placed(2))
        outbox.publish(session, placed(3))
    assert database.events() == [1, 3]
    assert database.sent("INSERT") == ["INSERT INTO outbox", "INSERT INTO other_outbox"]


# --- kinds of sessions ---


def test_scoped_sessions(database: Database) -> None:
    """The registry stands for its current session."""
    sessions = scoped_session(sessionmaker(database.engine))
    outbox.publish(sessions, placed(1))
    sessions.commit()
    sessions.remove()
    assert database.events() == [1]


async def test_async_scoped_sessions(database: Database) -> None:
    """The same with asyncio."""
    scope = object()
    sessions = async_scoped_session(async_sessionmaker(database.async_engine), scopefunc=lambda: scope)
    await outbox.publish(sessions, placed(1))
    await sessions.commit()
    await sessions.remove()
    assert database.events() == [1]


async def test_a_forgotten_await_loses_nothing(database: Database) -> None:
    """With an AsyncSession the event is in the session when the call returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with AsyncSession(database.async_engine) as session, session.begin():
            session.add(Order(id=1))
            _ = outbox.publish(session, placed(1))
            _ = outbox.publish_all(session, [placed(2), placed(3)])
            gc.collect()
    assert database.events() == [1, 2, 3]


async def test_a_forgotten_await_on_a_connection_is_called_by_its_name(database: Database) -> None:
    """Nothing can be written without the await, so Python's warning says of which call it is; type checkers do too."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with database.async_engine.begin() as connection:
            _ = outbox.publish(connection, placed(1))
            _ = outbox.publish_all(connection, [placed(2)])
            del _
            gc.collect()
    said = [str(warning.message) for warning in caught]
    assert said == [
        "coroutine 'Outbox.publish' was never awaited",
        "coroutine 'Outbox.publish_all' was never awaited",
    ]
    assert database.events() == []


async def test_what_publish_returns_is_a_coroutine_like_any_other(database: Database) -> None:
    """It can be awaited, run as a task, and thrown at; awaiting it twice gives the event again."""
    async with AsyncSession(database.async_engine) as session, session.begin():
        published = outbox.publish(session, placed(1))
        assert inspect.isawaitable(published)
        assert isinstance(published, Coroutine)
        published_event = await asyncio.create_task(published)
        assert await published is published_event
        with pytest.raises(ValueError, match="thrown"):
            published.throw(ValueError("thrown"))
        published.close()
    assert database.events() == [1]


async def test_publishing_inside_run_sync(database: Database) -> None:
    """The synchronous session behind an AsyncSession is a handle like any other."""
    async with AsyncSession(database.async_engine) as session, session.begin():
        await session.run_sync(lambda sync: outbox.publish(sync, placed(1)))
    assert database.events() == [1]


# --- no transaction ---


def test_a_session_that_does_not_begin_by_itself(database: Database) -> None:
    """With autobegin off there is no transaction to join until begin() was called."""
    with Session(database.engine, autobegin=False) as session:
        with pytest.raises(NotInTransactionError, match=r"with session\.begin\(\)"):
            outbox.publish(session, placed(1))
        with session.begin():
            outbox.publish(session, placed(2))
    assert database.events() == [2]


@pytest.mark.parametrize("level", ["create_engine", "execution_options"])
def test_a_session_on_an_autocommit_engine(database: Database, level: str) -> None:
    """Every statement would be a transaction of its own: refused when publishing."""
    if level == "create_engine":
        engine = create_engine(database.engine.url, isolation_level="AUTOCOMMIT")
    else:
        engine = database.engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(NotInTransactionError, match="AUTOCOMMIT"):
        outbox.publish(session, placed(1))
    engine.dispose()
    assert database.events() == []


def test_a_session_whose_connection_is_put_into_autocommit(database: Database) -> None:
    """Found at the latest when the event would be written."""
    with Session(database.engine) as session:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        outbox.publish(session, placed(1))
        with pytest.raises(NotInTransactionError, match="AUTOCOMMIT"):
            session.commit()
    assert database.events() == []
