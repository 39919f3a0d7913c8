"""What is in flight, held against the code that is about to run: incompatible changes are named, others are not."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, create_engine, insert
from sqlalchemy.pool import StaticPool

from sagapost.core import event
from sagapost.core.identity import dedup_key
from sagapost.core.schema import install_schema
from sagapost.inbox import Inbox
from sagapost.inbox.kept.envelope import envelope_of, shown_columns
from sagapost.inbox.kept.registry import register_consumer
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Deadline, Sagas, StepContext
from sagapost.sagas.choreography import Severity
from sagapost.sagas.inflight import InFlightReport, check_in_flight
from sagapost.sagas.orchestration import Island
from tests.inbox.harness import an_event

NOW = datetime.now(UTC)


def struct(name: str, type_: str, **fields: Any) -> Any:
    """Return the class of an event."""
    return event(type_)(
        msgspec.defstruct(
            name, [(key, *value) if isinstance(value, tuple) else (key, value) for key, value in fields.items()]
        )
    )


@dataclass(frozen=True)
class Version:
    """A version of the service; the defaults are the one whose sagas are in flight."""

    placed: str = "shop.placed.v1"
    placed_fields: dict[str, Any] = field(default_factory=lambda: {"order": str})
    upcasts: bool = False
    paid: str | None = "shop.paid.v1"
    overdue: str | None = "shop.overdue.v1"
    overdue_fields: dict[str, Any] = field(default_factory=lambda: {"order": str})
    deadline: str = "payment"
    compensation: str | None = "refund"
    function: str = "refund"
    signature: str = "*, order: str, amount: int"
    second: str | None = "release"
    island: str | None = "ship"
    step: str = "pick"
    step_function: str = "pick"
    second_step: str | None = "pack"
    undoes: bool = True
    state_fields: dict[str, Any] = field(default_factory=lambda: {"order": str})
    more: tuple[str, ...] = ()

    def build(self) -> Inbox:
        """Declare it."""
        outbox = Outbox(source="https://shop.example")
        sagas = Sagas("shop", outbox=outbox)
        inbox = Inbox("shop", outbox=outbox, context=sagas.context)
        Placed = struct("Placed", self.placed, **self.placed_fields)  # noqa: N806
        compensation = self._compensation(sagas, self.compensation, self.function, self.signature)
        self._compensation(sagas, self.second, "release", "*, order: str")
        deadlines = []
        if self.overdue is not None:
            Overdue = struct("Overdue", self.overdue, **self.overdue_fields)  # noqa: N806
            deadlines.append(Deadline(self.deadline, Overdue, after=timedelta(hours=1)))
            inbox.on(Overdue)(self._handler("overdue"))
        inbox.on(Placed)(sagas.step(compensation=compensation, deadlines=deadlines)(self._handler("placed")))
        if self.upcasts:
            old = struct("Old", "shop.placed.v1", order=str)

            def convert(was: Any) -> Any:
                return Placed(was.order)

            inbox.upcast(old, to=Placed)(convert)
        for type_ in (self.paid, *self.more):
            if type_ is not None:
                inbox.on(type_)(self._handler(type_))
        if self.island is not None:
            self._island(sagas, inbox, self.island)
        return inbox

    def _island(self, sagas: Sagas, inbox: Inbox, name: str) -> None:
        state_class = msgspec.defstruct(
            "State", [(k, *v) if isinstance(v, tuple) else (k, v) for k, v in self.state_fields.items()]
        )
        island = Island(name, state=state_class, sagas=sagas, inbox=inbox)
        for step, function in ((self.step, self.step_function), (self.second_step, self.second_step)):
            if step is None:
                continue
            Do, Done = struct("Do", f"shop.do-{step}.v1", order=str), struct("Done", f"shop.{step}-done.v1", order=str)  # noqa: N806
            Undo = struct("Undo", f"shop.undo-{step}.v1", order=str)  # noqa: N806

            def command(state: Any, made: Any = Do) -> Any:
                return made(state.order)

            def undo(state: Any, made: Any = Undo) -> Any:
                return made(state.order)

            command.__name__ = function or step
            command.__annotations__["return"], undo.__annotations__["return"] = Do, Undo
            declared = island.step(reply=Done, name=step)(command)
            if self.undoes:
                declared.compensation()(undo)

    @staticmethod
    def _handler(name: str) -> Any:
        async def handler(event: Any, ctx: StepContext) -> None: ...

        handler.__name__ = name
        return handler

    @staticmethod
    def _compensation(sagas: Sagas, name: str | None, function: str, signature: str) -> Any:
        if name is None:
            return None
        scope: dict[str, Any] = {"CompensationContext": CompensationContext}
        exec(f"async def {function}(ctx: CompensationContext, {signature}) -> None: ...", scope)
        return sagas.compensation(name=name)(scope[function])


OLD = Version()


def fill(connection: Connection, inbox: Inbox, sagas: Sagas, *, count: int = 1) -> None:
    """Put `count` sagas in flight, with all there is of each."""
    assert inbox.outbox is not None
    tables, outbox = sagas.tables, inbox.outbox.tables
    parts = [outbox.part, inbox.tables.part, tables.part]
    install_schema(connection, outbox.versions, parts)
    consumer = register_consumer(connection, inbox.tables, inbox.name)
    known = [{"consumer": consumer, "type": each, "known_at": NOW} for each in sorted(inbox.takes)]
    connection.execute(insert(inbox.tables.types), known)
    names = [f"saga-{n}" for n in range(count)]

    def add(table: Any, *rows: Callable[[str], dict[str, Any]]) -> None:
        for row in rows:
            connection.execute(insert(table), [row(name) for name in names])

    mine = {"service": "shop"}
    add(tables.states, lambda s: mine | {"saga": s, "state": "running"})
    add(
        tables.compensations,
        lambda s: mine | {"saga": s, "name": "refund", "arguments": {"order": s, "amount": 3}},
        lambda s: mine | {"saga": s, "name": "release", "arguments": {"order": s}},
        lambda s: mine | {"saga": s, "name": "island ship", "arguments": {"run": s}},
    )
    add(
        tables.islands.runs,
        lambda s: (
            mine
            | {
                "id": s,
                "island": "ship",
                "saga": s,
                "instance": "",
                "state": "running",
                "data": {"order": s},
                "by_saga": False,
            }
        ),
    )
    step = {"stage": 0, "attempt": 1, "uncertain": False}
    add(
        tables.islands.steps,
        lambda s: step | {"run": s, "step": "pick", "position": 0, "state": "rolling_back", "undo": True},
        lambda s: step | {"run": s, "step": "pack", "position": 1, "state": "waiting", "undo": False},
    )

    def envelope(type_: str, saga: str) -> dict[str, Any]:
        one = an_event({"order": saga}, type=type_, correlationid=saga)
        return {
            "event_id": uuid.UUID(one.id),
            "source": one.source,
            "type": type_,
            "data": one.data,
            "correlationid": saga,
            "time": NOW,
        }

    add(outbox.outbox, lambda s: envelope("shop.placed.v1", s), lambda s: envelope("foreign.mail-sent.v1", s))
    add(
        outbox.scheduled,
        lambda s: envelope("shop.overdue.v1", s) | {"deliver_at": NOW, "name": sagas.deadline_name("payment")},
    )

    def parked(saga: str) -> dict[str, Any]:
        one = an_event({"order": saga}, type="shop.paid.v1", correlationid=saga)
        return {
            "consumer": consumer, "key": dedup_key(one), "state": "waiting", "reason": "failed", "error": "it failed",
            "topic": one.type, "envelope": envelope_of(one), "next_attempt_at": NOW, **shown_columns(one),
        }  # fmt: skip

    add(inbox.tables.parked, parked)


@pytest.fixture(scope="module")
def in_flight() -> Iterator[Connection]:
    """A database with one saga of the old version in flight."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        inbox = OLD.build()
        fill(connection, inbox, inbox.context.sagas)  # type: ignore[attr-defined]
        yield connection
    engine.dispose()


BREAKING: dict[str, tuple[Version, set[tuple[str, str]]]] = {
    "compensation removed": (replace(OLD, compensation=None), {("compensation", "refund")}),
    "compensation renamed": (replace(OLD, compensation="pay_back", function="pay_back"), {("compensation", "refund")}),
    "second compensation removed": (replace(OLD, second=None), {("compensation", "release")}),
    "argument renamed": (replace(OLD, signature="*, order_id: str, amount: int"), {("arguments", "refund")}),
    "argument removed": (replace(OLD, signature="*, order: str"), {("arguments", "refund")}),
    "argument added": (replace(OLD, signature="*, order: str, amount: int, why: str"), {("arguments", "refund")}),
    "argument of another type": (replace(OLD, signature="*, order: int, amount: int"), {("arguments", "refund")}),
    "event version dropped": (replace(OLD, placed="shop.placed.v2"), {("event", "shop.placed.v1")}),
    "event renamed": (replace(OLD, placed="shop.ordered.v1"), {("event", "shop.placed.v1")}),
    "event with a field more": (
        replace(OLD, placed_fields={"order": str, "at": int}),
        {("payload", "shop.placed.v1")},
    ),
    "event with a field of another type": (
        replace(OLD, placed_fields={"order": int}),
        {("payload", "shop.placed.v1")},
    ),
    "handler of a parked message removed": (replace(OLD, paid=None), {("event", "shop.paid.v1")}),
    "parked version dropped": (replace(OLD, paid="shop.paid.v2"), {("event", "shop.paid.v1")}),
    "deadline nobody takes": (replace(OLD, overdue=None), {("deadline", "payment"), ("event", "shop.overdue.v1")}),
    "event of a deadline renamed": (
        replace(OLD, overdue="shop.too-late.v1"),
        {("deadline", "payment"), ("event", "shop.overdue.v1")},
    ),
    "deadline renamed": (replace(OLD, deadline="pay"), {("deadline", "payment")}),
    "event of a deadline changed": (
        replace(OLD, overdue_fields={"order": str, "n": int}),
        {("payload", "shop.overdue.v1")},
    ),
    "island removed": (replace(OLD, island=None), {("island", "ship"), ("compensation", "island ship")}),
    "island renamed": (replace(OLD, island="send"), {("island", "ship"), ("compensation", "island ship")}),
    "step renamed": (replace(OLD, step="collect"), {("island-step", "ship.pick")}),
    "step removed": (replace(OLD, second_step=None), {("island-step", "ship.pack")}),
    "compensation of a step removed": (replace(OLD, undoes=False), {("island-step", "ship.pick")}),
    "state with a field more": (replace(OLD, state_fields={"order": str, "n": int}), {("island-state", "ship")}),
    "state with a field of another type": (replace(OLD, state_fields={"order": int}), {("island-state", "ship")}),
}

COMPATIBLE: dict[str, Version] = {
    "nothing": OLD,
    "function of a compensation renamed": replace(OLD, function="pay_back"),
    "argument with a default added": replace(OLD, signature="*, order: str, amount: int, why: str = ''"),
    "argument made optional": replace(OLD, signature="*, order: str, amount: int | None = None"),
    "argument made wider": replace(OLD, signature="*, order: str, amount: float"),
    "arguments in another order": replace(OLD, signature="*, amount: int, order: str"),
    "takes any arguments": replace(OLD, signature="**arguments: object"),
    "event with an optional field more": replace(OLD, placed_fields={"order": str, "note": (str, "")}),
    "event with a field less": replace(OLD, placed_fields={}),
    "event with a wider field": replace(OLD, placed_fields={"order": str | int}),
    "event converted to a new version": replace(OLD, placed="shop.placed.v2", upcasts=True),
    "a new version taken beside the old one": replace(OLD, more=("shop.placed.v2",)),
    "another event taken": replace(OLD, more=("shop.cancelled.v1",)),
    "several events taken": replace(OLD, more=("shop.cancelled.v1", "shop.returned.v1")),
    "a pattern taken": replace(OLD, more=("other.#",)),
    "a parked event taken by a pattern": replace(OLD, paid=None, more=("shop.#",)),
    "event of a deadline with an optional field more": replace(OLD, overdue_fields={"order": str, "note": (str, "")}),
    "function of a step renamed": replace(OLD, step_function="collect"),
    "state with an optional field more": replace(OLD, state_fields={"order": str, "note": (str, "")}),
    "state with a wider field": replace(OLD, state_fields={"order": str | int}),
}


def grave(report: InFlightReport) -> set[tuple[str, str]]:
    """Return the errors."""
    return {(each.kind, each.subject) for each in report.findings if each.severity is Severity.ERROR}


@pytest.mark.parametrize("change", BREAKING)
def test_pitfall_35_an_incompatible_change_is_named(in_flight: Connection, change: str) -> None:
    """The error names what is in flight, whose saga it is, and what to do; nothing else is called an error."""
    version, wanted = BREAKING[change]
    report = check_in_flight(in_flight, [version.build()])
    assert grave(report) == wanted
    errors = [each for each in report.findings if each.severity is Severity.ERROR]
    assert all(each.sagas == ("saga-0",) and each.count and each.remedy for each in errors)


@pytest.mark.parametrize("change", COMPATIBLE)
def test_pitfall_35_a_compatible_change_passes(in_flight: Connection, change: str) -> None:
    """No error, and everything was looked at."""
    report = check_in_flight(in_flight, [COMPATIBLE[change].build()])
    assert [each for each in report.findings if each.severity is not Severity.ADVICE] == []
    assert report.looked_at == {
        "deadlines": 1, "events": 3, "intents": 3, "parked messages": 1, "runs of islands": 1, "steps of islands": 2,
    }  # fmt: skip


def test_what_only_a_person_could_still_ask_for_is_a_warning(in_flight: Connection) -> None:
    """Past the point of no return a saga is brought to its end: its compensations may go, which is said."""
    inbox = replace(OLD, compensation=None, second=None).build()
    states = inbox.context.sagas.tables.states  # type: ignore[attr-defined]
    with in_flight.begin_nested() as pivoted:
        in_flight.execute(states.update().values(pivoted_at=NOW, pivot_reason="the parcel has left"))
        report = check_in_flight(in_flight, [inbox])
        pivoted.rollback()
    assert grave(report) == set()
    warned = {each.subject: each for each in report.findings if each.severity is Severity.WARNING}
    assert warned.keys() == {"refund", "release"}
    assert "past their point of no return" in warned["refund"].message


def test_of_a_saga_that_has_completed_nothing_is_in_flight(in_flight: Connection) -> None:
    """Its intents are kept, and need no compensation any more; it is rolled back only by force, and then they do."""
    inbox = replace(OLD, compensation=None, second=None).build()
    states = inbox.context.sagas.tables.states  # type: ignore[attr-defined]
    with in_flight.begin_nested() as completed:
        in_flight.execute(states.update().values(completed_at=NOW))
        report = check_in_flight(in_flight, [inbox])
        completed.rollback()
    assert {each.subject for each in report.findings} & {"refund", "release"} == set()
    assert "intents" not in report.looked_at


def test_ten_thousand_sagas_in_flight_are_judged_within_a_minute() -> None:
    """Each with three intents, a run of an island, two events, a deadline and a parked message."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection:
        inbox = OLD.build()
        fill(connection, inbox, inbox.context.sagas, count=10_000)  # type: ignore[attr-defined]
        began = time.perf_counter()
        report = check_in_flight(connection, [replace(OLD, signature="*, order: str", step="collect").build()])
        took = time.perf_counter() - began
    engine.dispose()
    print(f"10,000 sagas in flight judged in {took:.1f} s: {dict(report.looked_at)}")
    assert {(each.kind, each.subject): each.count for each in report.findings if each.severity is Severity.ERROR} == {
        ("arguments", "refund"): 10_000,
        ("island-step", "ship.pick"): 10_000,
    }
    assert took < 60
