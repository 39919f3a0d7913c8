"""Domain events recorded on aggregates are published by the session they belong to, and share its fate."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import ForeignKey, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    make_transient,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sagapost.core import event
from sagapost.core.errors import ConfigurationError, UnnamedEventError
from sagapost.outbox import Recorder
from tests.outbox.write.service import Database, outbox


class Models(DeclarativeBase):
    """The models of these tests."""


@event("carts.cart-changed.v1")
class CartChanged(msgspec.Struct):
    order_id: int


class Cart(Recorder, Models):
    """An aggregate that records what happens to it, from its constructor on."""

    __tablename__ = "carts"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="open")
    items: Mapped[list[Item]] = relationship(back_populates="cart")

    @classmethod
    def opened(cls, cart_id: int) -> Cart:
        """Open a cart."""
        cart = cls(id=cart_id)
        cart.record(CartChanged(cart_id), key=str(cart_id))
        return cart

    def change(self, n: int) -> None:
        """Change the cart."""
        self.status = f"changed {n}"
        self.record(CartChanged(n), key=str(self.id))


class Item(Recorder, Models):
    """Part of a cart, added to the session through it."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    cart_id: Mapped[int] = mapped_column(ForeignKey("carts.id"))
    cart: Mapped[Cart] = relationship(back_populates="items")


class Sheets(MappedAsDataclass, DeclarativeBase):
    """Models that are dataclasses."""


class Sheet(Recorder, Sheets):
    """The mixin adds no field."""

    __tablename__ = "sheets"

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def db(database: Database) -> Database:
    """A database with the models' tables."""
    with database.engine.begin() as connection:
        Models.metadata.create_all(connection)
        Sheets.metadata.create_all(connection)
    database.statements.clear()
    return database


@pytest.fixture
def sessions(db: Database) -> sessionmaker[Session]:
    """Sessions that capture."""
    sessions = sessionmaker(db.engine)
    outbox.capture(sessions)
    return sessions


def carts(db: Database) -> list[int]:
    """Return the ids of the committed carts."""
    with db.engine.connect() as connection:
        return list(connection.scalars(select(Cart.id).order_by(Cart.id)))


# --- the fate of what is recorded ---


def test_a_new_aggregate_publishes_what_its_constructor_recorded(
    db: Database, sessions: sessionmaker[Session]
) -> None:
    """Recorded before it joined the session; published when it is added, with the options given."""
    with sessions.begin() as session:
        session.add(Cart.opened(1))
    assert carts(db) == [1]
    assert db.events() == [1]
    assert [(row["type"], row["partitionkey"]) for row in db.rows()] == [("carts.cart-changed.v1", "1")]


def test_a_loaded_aggregate_publishes_at_once(db: Database, sessions: sessionmaker[Session]) -> None:
    """In the order of recording, together with what is published directly."""
    with sessions.begin() as session:
        session.add(Cart.opened(1))
    with sessions.begin() as session:
        cart = session.get_one(Cart, 1)
        cart.change(10)
        outbox.publish(session, CartChanged(11))
        cart.change(12)
    assert db.events() == [1, 10, 11, 12]
    assert db.sent("INSERT")[-1:] == ["INSERT INTO outbox"]


def test_parts_added_through_their_aggregate_publish(db: Database, sessions: sessionmaker[Session]) -> None:
    """A cascade is an add like any other."""
    with sessions.begin() as session:
        cart = Cart(id=1)
        item = Item(id=5)
        item.record(CartChanged(5))
        cart.items.append(item)
        session.add(cart)
    assert db.events() == [5]


def test_rollback_leaves_nothing(db: Database, sessions: sessionmaker[Session]) -> None:
    """Neither of a new aggregate nor of a loaded one."""
    with sessions() as session:
        cart = Cart.opened(1)
        session.add(cart)
        cart.change(2)
        session.rollback()
    assert carts(db) == []
    assert db.events() == []


def test_a_savepoint_rolled_back_takes_its_events_along(db: Database, sessions: sessionmaker[Session]) -> None:
    """What was undone is not published: neither changes of an older object nor objects that are no more."""
    with sessions.begin() as session:
        cart = Cart.opened(1)
        session.add(cart)
        with session.begin_nested() as savepoint:
            cart.change(2)
            session.add(Cart.opened(3))
            savepoint.rollback()
        cart.change(4)
    assert carts(db) == [1]
    assert db.events() == [1, 4]


@pytest.mark.parametrize("flushed", [True, False])
def test_an_aggregate_added_again_after_a_rollback(
    db: Database, sessions: sessionmaker[Session], flushed: bool
) -> None:
    """A retry with the same object publishes what its constructor recorded, and only once."""
    cart = Cart.opened(1)
    for _ in range(2):
        with sessions() as session:
            session.add(cart)
            if flushed:
                session.flush()
            session.rollback()
    with sessions.begin() as session:
        session.add(cart)
    assert carts(db) == [1]
    assert db.events() == [1]


def test_an_aggregate_expunged_before_the_flush(db: Database, sessions: sessionmaker[Session]) -> None:
    """It takes its events along: what is not stored did not happen."""
    with sessions.begin() as session:
        cart = Cart.opened(1)
        session.add(cart)
        session.expunge(cart)
        session.add(Cart.opened(2))
    assert carts(db) == [2]
    assert db.events() == [2]


def test_a_copy_made_of_a_stored_aggregate(db: Database, sessions: sessionmaker[Session]) -> None:
    """What the original recorded is not recorded by the copy."""
    with sessions.begin() as session:
        cart = Cart.opened(1)
        session.add(cart)
    with sessions.begin() as session:
        cart = session.get_one(Cart, 1)
        make_transient(cart)
        cart.id = 2
        session.add(cart)
    assert carts(db) == [1, 2]
    assert db.events() == [1]


def test_a_detached_aggregate_records_for_its_next_session(db: Database, sessions: sessionmaker[Session]) -> None:
    """Changed outside any session, published when it is added to one."""
    with sessions.begin() as session:
        session.add(Cart.opened(1))
    with Session(db.engine, expire_on_commit=False) as reading:
        cart = reading.get_one(Cart, 1)
    cart.change(2)
    assert db.events() == [1]
    with sessions.begin() as session:
        session.add(cart)
    assert db.events() == [1, 2]


def test_a_clean_session_and_a_bulk_update(db: Database, sessions: sessionmaker[Session]) -> None:
    """An aggregate that records without changing a column, beside a statement that bypasses the unit of work."""
    with sessions.begin() as session:
        session.add(Cart(id=1))
    with sessions.begin() as session:
        cart = session.get_one(Cart, 1)
        session.execute(update(Cart).values(status="archived"))
        cart.record(CartChanged(7))
    assert db.events() == [7]


def test_a_dataclass_model_keeps_its_fields(db: Database, sessions: sessionmaker[Session]) -> None:
    """The mixin declares nothing that mapping or dataclasses could take for a field."""
    sheet = Sheet(id=1)
    sheet.record(CartChanged(1))
    assert repr(sheet).endswith("Sheet(id=1)")
    with sessions.begin() as session:
        session.add(sheet)
    assert db.events() == [1]


# --- where it is switched on ---


def test_a_session_that_captures_nothing_says_so(db: Database) -> None:
    """An event that nobody will publish is an error, when the object is added or when it records."""
    with Session(db.engine) as session:
        with pytest.raises(ConfigurationError, match=r"Cart recorded an event.*outbox\.capture\(sessions\)"):
            session.add(Cart.opened(1))
        session.rollback()
        cart = Cart(id=2)
        session.add(cart)
        with pytest.raises(ConfigurationError, match=r"outbox\.capture\(sessions\)"):
            cart.change(3)


def test_a_bad_event_is_refused_where_it_is_published(db: Database, sessions: sessionmaker[Session]) -> None:
    """On a stored object at once; on a new one when it is added."""
    with sessions() as session:
        cart = Cart(id=1)
        cart.record({"no": "name"})
        with pytest.raises(UnnamedEventError):
            session.add(cart)


class Capturing(Session):
    """A session class that captures."""


@pytest.mark.parametrize("way", ["class", "session", "scoped", "info"])
def test_every_source_of_sessions(db: Database, way: str) -> None:
    """A factory, a registry, one session, or a class; other info of the factory is kept."""
    session: Any
    match way:
        case "class":
            outbox.capture(Capturing)
            session = Capturing(db.engine)
        case "session":
            session = Session(db.engine)
            outbox.capture(session)
        case "scoped":
            session = scoped_session(sessionmaker(db.engine))
            outbox.capture(session)
        case _:
            factory = sessionmaker(db.engine, info={"tenant": "a"})
            outbox.capture(factory)
            session = factory()
            assert session.info["tenant"] == "a"
    session.add(Cart.opened(1))
    session.commit()
    session.close()
    assert db.events() == [1]


@pytest.mark.parametrize("way", ["factory", "session", "scoped"])
async def test_every_source_of_async_sessions(db: Database, way: str) -> None:
    """The same with asyncio: recording needs no await."""
    sessions = async_sessionmaker(db.async_engine)
    session: Any
    if way == "factory":
        outbox.capture(sessions)
        session = sessions()
    elif way == "session":
        session = AsyncSession(db.async_engine)
        outbox.capture(session)
    else:
        scope = object()
        session = async_scoped_session(sessions, scopefunc=lambda: scope)
        outbox.capture(session)
    session.add(Cart.opened(1))
    await session.commit()
    (await session.get_one(Cart, 1)).change(2)
    await session.commit()
    await session.close()
    assert db.events() == [1, 2]


@pytest.mark.parametrize("wrong", [None, object(), Session, Cart, "sessions"])
def test_what_is_no_source_of_sessions(wrong: Any) -> None:
    """Also the Session class itself: that would be every session of the process."""
    with pytest.raises(TypeError, match="takes a sessionmaker"):
        outbox.capture(wrong)
