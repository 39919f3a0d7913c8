"""What became of the sagas: every order's effects, the books, the ledger and the tracker, compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from sagapost.sagas.tracker import SagaState, Tracker
from tests.chaos import sagas_service as service
from tests.chaos.sagas_stage import ACCOUNTS, EACH_ACCOUNT, EACH_ITEM, ITEMS

__all__ = ["Books", "Ledger", "OrderRow", "Verdict", "judge", "look", "tracked_states", "unsettled"]

WORKING: Mapping[str, type[service.Effect]] = {
    "stock": service.StockMoved,
    "payment": service.MoneyMoved,
    "shipping": service.ParcelMoved,
}
"""The services with something to undo, and where they write what they do."""
_ENDS = {"completed": SagaState.COMPLETED, "cancelled": SagaState.ROLLED_BACK}
_DOOMED = {service.Fate.REFUSED, service.Fate.BREAKS, service.Fate.LOST}


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order as Orders has it in the end."""

    id: int
    saga: str
    state: str
    quantity: int
    cents: int


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a service's ledger says of one saga."""

    state: str
    intents: tuple[str, ...] = ()
    """States, oldest first."""


@dataclass(slots=True)
class Books:
    """Everything that is written down, in all databases."""

    orders: dict[int, OrderRow] = field(default_factory=dict[int, OrderRow])
    effects: dict[str, dict[int, list[int]]] = field(default_factory=dict[str, dict[int, list[int]]])
    """By service and order."""
    ledger: dict[str, dict[str, Ledger]] = field(default_factory=dict[str, dict[str, Ledger]])
    """By service and saga."""
    available: int = 0
    """Units on the shelves."""
    cents: int = 0
    """Of all customers together."""
    left: Counter[str] = field(default_factory=Counter[str])
    """Rows where none may be left: outboxes, dead letters, open tasks."""


@dataclass(slots=True)
class Verdict:
    """Counts of what is wrong, each with the first orders or sagas it was found at; all must be empty."""

    unplaced: list[object] = field(default_factory=list[object])
    """Committed and not there, or there and never committed."""
    unfinished: list[object] = field(default_factory=list[object])
    """Neither completed nor cancelled."""
    stuck: list[object] = field(default_factory=list[object])
    """The ledger waits for something: still rolling back, or for a person."""
    effects: list[object] = field(default_factory=list[object])
    """Completed without every effect exactly once; or cancelled, and not exactly what was done was undone."""
    impossible: list[object] = field(default_factory=list[object])
    """Completed although a step cannot have succeeded; or cancelled for no reason."""
    ledger: list[object] = field(default_factory=list[object])
    """The ledger says something else than the service's data."""
    money: list[object] = field(default_factory=list[object])
    """Cents that are missing or too many."""
    stock: list[object] = field(default_factory=list[object])
    """Units that are missing or too many."""
    tracker: list[object] = field(default_factory=list[object])
    """The tracker says something else than Orders."""
    left: list[object] = field(default_factory=list[object])
    """What nobody will look at any more."""

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return not any(getattr(self, each.name) for each in fields(self))

    def __str__(self) -> str:
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return "; ".join(f"{len(what)} {name}{f' {what[:5]}' if what else ''}" for name, what in found.items())


def judge(books: Books, placed: Mapping[int, service.OrderPlaced], tracked: Mapping[str, SagaState]) -> Verdict:
    """Compare what is written down in all places with each other and with what was placed."""
    verdict = Verdict()
    verdict.unplaced += sorted(books.orders.keys() ^ placed.keys())
    verdict.left += [f"{rows} {name}" for name, rows in books.left.items() if rows]
    for order in books.orders.values():
        if order.state not in _ENDS:
            verdict.unfinished.append(order.id)
            continue
        _judge_effects(verdict, books, order)
        _judge_ledger(verdict, books, order)
        if (wanted := placed.get(order.id)) is not None and not _possible(order, wanted):
            verdict.impossible.append((order.id, order.state, wanted.fate))
        if tracked.get(order.saga) is not _ENDS[order.state]:
            verdict.tracker.append((order.id, order.state, tracked.get(order.saga)))
    kept = [order for order in books.orders.values() if order.state == "completed"]
    if difference := books.cents + sum(order.cents for order in kept) - ACCOUNTS * EACH_ACCOUNT:
        verdict.money.append(difference)
    if difference := books.available + sum(order.quantity for order in kept) - ITEMS * EACH_ITEM:
        verdict.stock.append(difference)
    strangers = {id_ for effects in books.effects.values() for id_ in effects} - books.orders.keys()
    verdict.effects += sorted(strangers)
    return verdict


def _possible(order: OrderRow, wanted: service.OrderPlaced) -> bool:
    if order.state == "completed":
        return wanted.fate not in _DOOMED
    return True


def _amounts(order: OrderRow) -> dict[str, int]:
    return {"stock": order.quantity, "payment": order.cents, "shipping": 1}


def _judge_effects(verdict: Verdict, books: Books, order: OrderRow) -> None:
    for name, amount in _amounts(order).items():
        effects = books.effects[name].get(order.id, [])
        allowed = [[amount]] if order.state == "completed" else [[], [amount, -amount]]
        if effects not in allowed:
            verdict.effects.append((order.id, order.state, name, effects))


def _judge_ledger(verdict: Verdict, books: Books, order: OrderRow) -> None:
    for name in WORKING:
        said = books.ledger[name].get(order.saga)
        done = bool(books.effects[name].get(order.id))
        if order.state == "completed":
            expected = Ledger("running", ("pending",))
        else:
            expected = Ledger("rolled_back", ("done",) if done else ())
        if said is not None and (said.state in {"rolling_back", "stuck"} or "stuck" in said.intents):
            verdict.stuck.append((order.id, name, said))
        elif said != expected:
            verdict.ledger.append((order.id, order.state, name, said))


async def look(engines: Mapping[str, AsyncEngine]) -> Books:
    """Read all four databases."""
    books = Books()
    order = service.Order
    for row in await _rows(engines["orders"], select(order.id, order.saga, order.state, order.quantity, order.cents)):
        books.orders[row.id] = OrderRow(row.id, row.saga, row.state, row.quantity, row.cents)
    for name, effect in WORKING.items():
        effects: dict[int, list[int]] = defaultdict(list)
        for row in await _rows(engines[name], select(effect.order_id, effect.amount).order_by(effect.position)):
            effects[row.order_id].append(row.amount)
        books.effects[name] = effects
        books.ledger[name] = await _ledger(engines[name], name)
    books.available = (await _rows(engines["stock"], select(func.sum(service.Stock.available))))[0][0]
    books.cents = int((await _rows(engines["payment"], select(func.sum(service.Account.cents))))[0][0])
    for name, each in service.SERVICES.items():
        tables = {
            "events in the outbox": each.outbox.tables.outbox,
            "scheduled events": each.outbox.tables.scheduled,
            "dead letters of the relay": each.outbox.tables.dead,
            "parked messages": each.inbox.tables.parked,
            "tasks": each.sagas.tables.tasks,
        }
        for what, table in tables.items():
            count = (await _rows(engines[name], select(func.count()).select_from(table)))[0][0]
            books.left[f"{what} of {name}"] += count
    return books


async def _ledger(engine: AsyncEngine, name: str) -> dict[str, Ledger]:
    tables = service.SERVICES[name].sagas.tables
    intents: dict[str, list[str]] = defaultdict(list)
    columns = tables.compensations.c
    for row in await _rows(engine, select(columns.saga, columns.state).order_by(columns.id)):
        intents[row.saga].append(row.state)
    states = await _rows(engine, select(tables.states.c.saga, tables.states.c.state))
    return {row.saga: Ledger(row.state, tuple(intents.pop(row.saga, ()))) for row in states} | {
        saga: Ledger("none", tuple(of)) for saga, of in intents.items()
    }


async def unsettled(engines: Mapping[str, AsyncEngine]) -> int:
    """Count what is still to come: undecided orders, events not yet sent, messages parked, sagas not rolled back."""
    order = service.Order
    undecided = select(func.count()).select_from(order).where(order.state == "placed")
    count = (await _rows(engines["orders"], undecided))[0][0]
    cancelled = select(func.count()).select_from(order).where(order.state == "cancelled")
    rollbacks = (await _rows(engines["orders"], cancelled))[0][0]
    for name, each in service.SERVICES.items():
        states = each.sagas.tables.states
        if name in WORKING:
            rolled_back = select(func.count()).select_from(states).where(states.c.state == "rolled_back")
            count += rollbacks - (await _rows(engines[name], rolled_back))[0][0]
        for query in (
            select(func.count()).select_from(each.outbox.tables.outbox),
            select(func.count()).select_from(each.inbox.tables.parked),
            select(func.count()).select_from(states).where(states.c.state == "rolling_back"),
        ):
            count += (await _rows(engines[name], query))[0][0]
    return int(count)


async def tracked_states(tracker: Tracker, books: Books) -> dict[str, SagaState]:
    """Ask the tracker where every saga is."""
    shown = {order.saga: await tracker.show(order.saga) for order in books.orders.values()}
    return {saga: view.state for saga, view in shown.items() if view is not None}


async def _rows(engine: AsyncEngine, query: Any) -> Sequence[Any]:
    async with engine.connect() as connection:
        return (await connection.execute(query)).all()
