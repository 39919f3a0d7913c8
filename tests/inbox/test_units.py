"""The small parts by themselves: keys, lanes, envelopes, declarations, settings, context, statements."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, inspect
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from sagapost.core import Event, event, new_id
from sagapost.core.broker import Malformed
from sagapost.core.errors import ConfigurationError, UnnamedEventError
from sagapost.core.identity import KEY_BYTES, dedup_key
from sagapost.core.schema import check_schema, install_schema
from sagapost.inbox import ConsumerSettings, Context, Inbox, InboxTables, RetryPolicy, SyncContext
from sagapost.inbox.arriving.keys import malformed_key
from sagapost.inbox.arriving.message import Message, Parking
from sagapost.inbox.arriving.ordering import Lanes
from sagapost.inbox.declared.handlers import topic_regex
from sagapost.inbox.handling.session import HandlerSessions
from sagapost.inbox.handling.together import Batches
from sagapost.inbox.kept.envelope import envelope_of, restore, shown, shown_time
from tests.inbox.harness import OrderPlaced, StockReserved, an_event

# --- keys ---


def test_keys_of_time_ordered_ids_sort_by_time() -> None:
    """Keys of UUIDv7 ids begin with their time, so that inserts go to the right edge of the index."""
    ids = [new_id() for _ in range(100)]
    keys = [dedup_key(an_event(OrderPlaced("x"), id=id_)) for id_ in ids]
    assert [key[:6] for key in keys] == [UUID(id_).bytes[:6] for id_ in ids]
    assert len(set(keys)) == 100
    assert {len(key) for key in keys} == {KEY_BYTES}


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_keys_follow_from_the_identity_and_nothing_else(a: str, b: str, c: str, d: str) -> None:
    """Equal identity, equal key; different identity, different key; also for text that only looks like a UUID."""
    first = Event(id=a, source=b, type="t", time=datetime.now(UTC))
    again = Event(id=a, source=b, type="t", time=datetime.min.replace(tzinfo=UTC), data=b"x")
    other = Event(id=c, source=d, type="t", time=first.time)
    assert dedup_key(first) == dedup_key(again)
    assert (dedup_key(first) == dedup_key(other)) == ((a, b) == (c, d))


def test_two_kinds_of_message_about_one_order_are_two() -> None:
    """An id that is the order's number says nothing of the type; one that sagapost made says all."""
    now, made = datetime.now(UTC), new_id()
    for id_, equal in (("order-17", False), (made, True)):
        placed, shipped = (Event(id=id_, source="erp", type=type_, time=now) for type_ in ("placed", "shipped"))
        assert (dedup_key(placed) == dedup_key(shipped)) is equal


@pytest.mark.parametrize(
    "id_",
    [
        "01a20606-a8d4-7zzz-a60c-ebaefa04737a",
        "zzzzzzzz-a8d4-70d1-a60c-ebaefa04737a",
        "01 20606-  d4-70d1-a60c-ebaefa04737a",
        "01a20606-a8d4-40d1-a60c-ebaefa04737a",
        "01A20606-A8D4-70D1-A60C-EBAEFA04737A",
        "\ud800",
    ],
)
def test_keys_of_any_text_have_their_length(id_: str) -> None:
    """Ids that are nearly a UUIDv7, or no text that has a UTF-8 form, get a key as well."""
    assert len(dedup_key(Event(id=id_, source="s", type="t", time=datetime.now(UTC)))) == KEY_BYTES


def test_the_boundary_between_source_and_id_counts() -> None:
    """("ab", "c") and ("a", "bc") are different events."""
    now = datetime.now(UTC)
    assert dedup_key(Event(id="c", source="ab", type="t", time=now)) != dedup_key(
        Event(id="bc", source="a", type="t", time=now)
    )


def test_keys_of_messages_that_are_no_events() -> None:
    """A redelivery of the same message has the same key, another body another one."""
    first = Malformed("no id", b"x", {}, message_id="1")
    assert malformed_key(first) == malformed_key(Malformed("no id", b"x", {"x-death": "header"}, message_id="1"))
    others = [
        Malformed("no id", b"y", {}, message_id="1"),
        Malformed("no id", b"x", {"ce-source": "erp"}, message_id="1"),
        Malformed("no id", b"x", {}, message_id="1", type="t"),
        Malformed("no id", b"x", {}, message_id="1", properties={"app_id": "erp"}),
    ]
    assert len({malformed_key(each) for each in (first, *others)}) == 5
    unnamed = Malformed("no id", b"x", {})
    assert malformed_key(unnamed) != malformed_key(unnamed)


# --- lanes ---


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), max_size=60), st.integers(1, 5))
def test_lanes_keep_order_and_hand_out_everything(plan: list[tuple[str | None, bool]], limit: int) -> None:
    """Whatever the mix of putting and taking: per lane in order, one taker per lane at a time, nothing lost."""
    lanes: Lanes[tuple[str | None, int]] = Lanes()
    taken: list[tuple[str | None, int]] = []
    held: list[list[str | None]] = []
    for number, (lane, take) in enumerate(plan):
        lanes.put((lane, number), lane)
        if take:
            batch = lanes.take_nowait(limit)
            busy = {name for group in held for name in group if name is not None}
            assert not busy & {name for name, _ in batch if name is not None}
            taken += [item for _, item in batch]
            held.append([name for name, _ in batch])
        if len(held) > 2:
            for name in set(held.pop(0)):
                lanes.done(name)
    while held or len(lanes):
        for group in held:
            for name in set(group):
                lanes.done(name)
        held = []
        batch = lanes.take_nowait(limit)
        taken += [item for _, item in batch]
        if batch:
            held.append([name for name, _ in batch])
    assert sorted(number for _, number in taken) == list(range(len(plan)))
    for lane in "abc":
        numbers = [number for name, number in taken if name == lane]
        assert numbers == sorted(numbers)


async def test_lanes_wake_those_who_wait_and_close() -> None:
    """Every waiter gets an item or, at the close, nothing; a cancelled one passes its call on."""
    lanes: Lanes[int] = Lanes()
    got: list[int] = []

    async def taker() -> None:
        while batch := await lanes.take(lambda: 1):
            got.extend(item for _, item in batch)
            lanes.done(batch[0][0])

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(taker)
        with anyio.move_on_after(0.01):
            await lanes.take(lambda: 1)
        for number in range(10):
            lanes.put(number, "one" if number % 2 else None)
        while len(got) < 10:
            await anyio.lowlevel.checkpoint()
        assert lanes.close() == []
    assert sorted(got) == list(range(10))


def test_withdrawn_items_leave_their_lanes_in_order() -> None:
    """What is taken back is gone; the lane goes on with the next, the busy lane waits for its taker."""
    lanes: Lanes[str] = Lanes()
    for item in ("a1", "a2", "b1", "b2", "a3", "c1"):
        lanes.put(item, item[0])
    assert lanes.take_nowait(1) == [("a", "a1")]
    assert sorted(lanes.withdraw(lambda item: item in {"a2", "b1", "c1"})) == ["a2", "b1", "c1"]
    assert lanes.take_nowait(5) == [("b", "b2")]
    lanes.done("a")
    assert lanes.take_nowait(5) == [("a", "a3")]


# --- envelopes ---


@given(st.text(), st.text(), st.binary(), st.dictionaries(st.text(), st.text()), st.none() | st.text())
def test_a_parked_event_comes_back_as_it_was(
    id_: str, source: str, data: bytes, extensions: dict[str, str], subject: str | None
) -> None:
    """Whatever text a stranger sends, NUL and lone surrogates included."""
    time = datetime(2026, 11, 23, 8, 0, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    event = Event(
        id=id_,
        source=source,
        type="t",
        time=time,
        data=data,
        subject=subject,
        datacontenttype=None,
        extensions=extensions,
    )
    envelope = envelope_of(event)
    assert envelope.isascii()
    assert "\x00" not in envelope
    assert restore(envelope, data) == event


def test_a_parked_message_that_is_no_event_comes_back_as_it_was() -> None:
    """With its reason, headers and body."""
    message = Malformed("why", b"\x00", {"h": "\ud800"}, message_id="1", type="t")
    assert restore(envelope_of(message), b"\x00") == message
    bare = Malformed("why", b"", {})
    assert restore(envelope_of(bare), b"") == bare


def test_text_and_times_as_columns_take_them() -> None:
    """No NUL, no surrogate; a time whose offset leads out of the calendar is left out."""
    assert shown(None) is None
    assert shown("a\x00\ud800b") == "a\N{REPLACEMENT CHARACTER}?b"
    assert shown_time(datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))) is None
    assert shown_time(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, tzinfo=UTC)


# --- declarations ---


@pytest.mark.parametrize(
    ("pattern", "topic", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "axb", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "ab", False),
        ("#", "", True),
        ("#", "a.b", True),
        ("#.a", "a", True),
        ("#.a", "x.y.a", True),
        ("#.a", "xa", False),
        ("a.#.b", "a.b", True),
        ("a.#.b", "a.x.y.b", True),
        ("#.#", "a", True),
        ("*.#", "a", True),
        ("*.#", "", True),
    ],
)
def test_topic_patterns(pattern: str, topic: str, matches: bool) -> None:
    """As AMQP's topic exchanges have them."""
    assert bool(topic_regex(pattern).fullmatch(topic)) is matches


def test_handlers_know_what_was_declared() -> None:
    """Accepted types, topics of the queue, what is emitted and undone: data for the map of the saga."""
    inbox = Inbox("warehouse", ordered=True)

    @inbox.on(OrderPlaced, "legacy.stock", emits=[StockReserved, "other.v1"], topics=["stock.#"])
    async def reserve(event: Any, ctx: Context) -> None: ...

    @inbox.on(StockReserved)
    def undo(event: StockReserved, ctx: SyncContext) -> None: ...

    first, second = inbox.handlers
    assert first.accepts == {"orders.order-placed.v1": OrderPlaced, "legacy.stock": dict}
    assert first.emits == {"warehouse.stock-reserved.v1", "other.v1"}
    assert (first.asynchronous, second.asynchronous) == (True, False)
    assert first.name.endswith("reserve")
    assert inbox.queue.topics == {"stock.#", "warehouse.stock-reserved.v1"}
    assert inbox.queue.ordered
    assert inbox.queue.name == "warehouse"


def test_what_cannot_be_a_handler_is_refused_where_it_is_declared() -> None:
    """Wrong number of arguments, generators, unnamed classes, nothing to listen to."""
    inbox = Inbox("warehouse")

    async def one(event: object) -> None: ...

    def generator(event: object, ctx: object) -> Any:
        yield

    class Unnamed(msgspec.Struct):
        pass

    with pytest.raises(ConfigurationError, match="two positional arguments"):
        inbox.on(OrderPlaced)(one)
    with pytest.raises(ConfigurationError, match="generator"):
        inbox.on(OrderPlaced)(generator)
    with pytest.raises(UnnamedEventError):
        inbox.on(Unnamed)
    with pytest.raises(ConfigurationError, match="event class or an event type"):
        inbox.on()
    with pytest.raises(ConfigurationError, match="1 to 255"):
        Inbox("")
    assert inbox.handlers == ()


def test_partial_functions_and_callable_objects_are_handlers() -> None:
    """Whatever can be called with two arguments."""
    inbox = Inbox("warehouse")

    async def three(extra: int, event: object, ctx: object) -> None: ...

    class Callable:
        async def __call__(self, event: object, ctx: object) -> None: ...

    inbox.on(OrderPlaced)(functools.partial(three, 1))
    inbox.on(OrderPlaced)(Callable())
    assert [handler.asynchronous for handler in inbox.handlers] == [True, True]


def test_conversions_that_go_in_circles_are_refused() -> None:
    """A chain that leads back to its beginning would never end."""

    @event("circle.v1")
    class V1(msgspec.Struct):
        pass

    @event("circle.v2")
    class V2(msgspec.Struct):
        pass

    def forth(old: V1) -> V2:
        return V2()

    def back(old: V2) -> V1:
        return V1()

    inbox = Inbox("warehouse")
    inbox.upcast(V1, to=V2)(forth)
    with pytest.raises(ConfigurationError, match="leads back"):
        inbox.upcast(V2, to=V1)(back)
    with pytest.raises(ConfigurationError, match="already converts"):
        inbox.upcast(V1, to=V2)(forth)


def test_a_context_without_an_outbox_says_so() -> None:
    """Publishing through an inbox that has none is a mistake of the declaration."""
    ctx = SyncContext(
        consumer="warehouse", event=an_event(OrderPlaced("x")), attempt=1, outbox=None, session=Session()
    )
    with pytest.raises(ConfigurationError, match="outbox=Outbox"):
        ctx.publish(StockReserved("x"))


# --- settings ---


@pytest.mark.parametrize(
    "values",
    [
        {"concurrency": 0},
        {"batch": 1_001},
        {"prefetch": 1_000_001},
        {"batch": 50, "prefetch": 20},
        {"max_crashes": 1},
        {"retention": timedelta(0)},
        {"drain_timeout": timedelta(seconds=-1)},
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any]) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match=next(reversed(values))):
        ConsumerSettings(**values)


def test_policies_out_of_range_are_refused() -> None:
    """The message names the setting."""
    with pytest.raises(ConfigurationError, match="quick"):
        RetryPolicy(quick=21)
    with pytest.raises(ConfigurationError, match="attempts"):
        RetryPolicy(attempts=0)


@pytest.mark.parametrize(
    ("settings", "concurrency", "expected"),
    [
        (ConsumerSettings(), 10, 32),
        (ConsumerSettings(concurrency=50), 50, 100),
        (ConsumerSettings(batch=0), 10, 160),
        (ConsumerSettings(batch=0), 1, 32),
        (ConsumerSettings(batch=50), 10, 1_000),
        (ConsumerSettings(batch=500), 10, 2_000),
        (ConsumerSettings(prefetch=7), 10, 7),
    ],
)
def test_the_prefetch_follows_what_can_be_in_work(settings: ConsumerSettings, concurrency: int, expected: int) -> None:
    """Twice what can be in work, within what the broker takes."""
    assert settings.effective_prefetch(concurrency, 2_000) == expected


def test_more_than_the_broker_takes_is_refused_where_it_was_asked_for() -> None:
    """The limit is the broker's, and no number of ours; without one, any prefetch goes."""
    assert ConsumerSettings(prefetch=5_000).effective_prefetch(1, None) == 5_000
    with pytest.raises(ConfigurationError, match="prefetch is 5,000, and this broker hands out at most 2,000"):
        ConsumerSettings(prefetch=5_000).effective_prefetch(1, 2_000)


# --- sessions, tables, statements ---


async def test_sessions_are_of_the_users_kind_and_not_theirs_to_end() -> None:
    """Class and options of the user's factory are kept; ending calls are refused with advice."""

    class MySync(Session):
        pass

    class MyAsync(AsyncSession):
        sync_session_class = MySync

    engine = create_async_engine("sqlite+aiosqlite://")
    sessions = HandlerSessions(async_sessionmaker(engine, class_=MyAsync, autoflush=False, info={"mine": 1}), None)
    async with engine.connect() as connection:
        session = sessions.open(connection)
        assert isinstance(session, MyAsync)
        assert isinstance(session.sync_session, MySync)
        assert session.sync_session.autoflush is False
        assert session.info == {"mine": 1}
        for call in ("commit", "rollback", "close", "reset", "invalidate"):
            with pytest.raises(Exception, match=rf"session\.{call}\(\)"):
                await getattr(session, call)()
        await connection.run_sync(lambda _: sessions.close(session))
    await engine.dispose()


@pytest.mark.parametrize("prefix", ["", "svc_"])
def test_tables_install_and_pass_the_check(prefix: str) -> None:
    """With and without a prefix; installing twice changes nothing."""
    engine = create_engine("sqlite://")
    tables = InboxTables(prefix=prefix)
    with engine.begin() as connection:
        assert install_schema(connection, tables.versions, [tables.part]) == ["audit", "inbox"]
        assert install_schema(connection, tables.versions, [tables.part]) == []
        check_schema(connection, tables.versions, tables.part, where="here")
        names = set(inspect(connection).get_table_names())
    assert {f"{prefix}inbox_{name}" for name in ("seen", "parked", "attempts", "consumers", "types")} < names
    engine.dispose()


async def test_who_may_share_a_transaction_in_order() -> None:
    """What was delivered comes after what is parked of its key, whichever was fed first, and not with it.

    Of a key that has one which must go alone, all do: none overtakes another. Other keys are not held up by it.
    """

    def too_old(_message: Message) -> None:
        return None

    dispatcher: Any = SimpleNamespace(too_old=too_old)
    unused: Any = None
    together = Batches(dispatcher, unused, unused, size=8)
    handler: Any = object()

    def message(key: str | None, parking: int | None = None, *, attempts: int = 0) -> Message:
        event = an_event(OrderPlaced("1"), key=key)
        place = None if parking is None else Parking(parking, 1)
        return Message(event, "orders", b"sixteen bytes ..."[:16], (handler,), None, key, place, attempts)

    delivered, first, second = message("a"), message("a", 1), message("a", 3)
    failed, behind_it = message("b", 2, attempts=1), message("b", 4)
    other, keyless = message("c"), message(None)
    groups, rest = together.split([delivered, second, failed, first, behind_it, other, keyless])
    assert [[id(each) for each in group] for group in groups] == [
        [id(first), id(second)],
        [id(keyless), id(delivered), id(other)],
    ]
    assert [id(each) for each in rest] == [id(failed), id(behind_it)]
