"""The services of the StreamTech example on SQLite, with a relay and a consumer each, as the demo runs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import anyio
import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from examples.streamtech import bank, maps, orders, payment, warehouse
from examples.streamtech.embedded import Embedded, embedded
from examples.streamtech.services import ENROLMENT, FULFILMENT, ISLAND, REORDERED, choreography
from sagapost.sagas.choreography import lint
from sagapost.sagas.testing import Rehearsal


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Embedded]:
    """Both services, running; three units of one record in stock."""
    async with embedded(tmp_path) as running:
        async with AsyncSession(running.engine("warehouse")) as session, session.begin():
            session.add(warehouse.Stock(item="blue-train", available=3, on_shelf=3))
        yield running
        await running.stop()


async def ended(shop: Embedded, order_id: UUID) -> orders.Order:
    """Wait until an order has its answer."""
    with anyio.fail_after(30):
        while True:
            async with AsyncSession(shop.engine("orders")) as session:
                order = await session.get_one(orders.Order, order_id)
                if order.status is not orders.Status.PLACED:
                    return order
            await anyio.sleep(0.02)


async def order(shop: Embedded, item: str, quantity: int) -> orders.Order:
    """Place an order and wait for its answer."""
    async with AsyncSession(shop.engine("orders")) as session, session.begin():
        placed = await orders.place_order(session, item, quantity)
        order_id = placed.id
    return await ended(shop, order_id)


async def shelf(shop: Embedded, item: str) -> int:
    """Return what is available."""
    async with AsyncSession(shop.engine("warehouse")) as session:
        return (await session.execute(select(warehouse.Stock.available).filter_by(item=item))).scalar_one()


async def test_an_order_is_confirmed_and_its_stock_put_aside(shop: Embedded) -> None:
    """The way there and back: OrderPlaced, a reservation and the smaller shelf, StockReserved, confirmed."""
    placed = await order(shop, "blue-train", 2)
    assert (placed.status, placed.reason) == (orders.Status.CONFIRMED, None)
    assert await shelf(shop, "blue-train") == 1
    async with AsyncSession(shop.engine("warehouse")) as session:
        reservation = await session.get_one(warehouse.Reservation, placed.id)
    assert (reservation.item, reservation.quantity) == ("blue-train", 2)


async def test_an_order_over_the_stock_is_cancelled_and_takes_nothing(shop: Embedded) -> None:
    """The last unit stays on the shelf, no reservation is made, and the next order that fits is served."""
    await order(shop, "blue-train", 2)
    refused = await order(shop, "blue-train", 2)
    assert (refused.status, refused.reason) == (orders.Status.CANCELLED, "blue-train is out of stock")
    assert await shelf(shop, "blue-train") == 1
    async with AsyncSession(shop.engine("warehouse")) as session:
        assert await session.get(warehouse.Reservation, refused.id) is None
    assert (await order(shop, "blue-train", 1)).status is orders.Status.CONFIRMED
    assert await shelf(shop, "blue-train") == 0


async def test_an_item_nobody_knows_is_an_answer_and_no_error(shop: Embedded) -> None:
    """The warehouse says that there is none; nothing is parked."""
    assert (await order(shop, "unhandled-of", 1)).status is orders.Status.CANCELLED
    async with AsyncSession(shop.engine("warehouse")) as session:
        assert (await session.execute(select(warehouse.service.inbox.tables.parked.c.id))).all() == []


async def test_the_database_refuses_negative_stock(shop: Embedded) -> None:
    """The invariant is in the table too: a handler with a mistake in its arithmetic could not commit."""
    async with AsyncSession(shop.engine("warehouse")) as session:
        stock = await session.get_one(warehouse.Stock, "blue-train")
        stock.available = -1
        with pytest.raises(IntegrityError):
            await session.commit()


@pytest.mark.parametrize("unanswered", [0, 2], ids=["never asked", "charged without an answer"])
async def test_pitfall_37_a_late_payment_step_charges_nobody(tmp_path: Path, unanswered: int) -> None:
    """An order that was given up costs nothing: not when its goods come late, nor when the bank never answered."""
    saga, order_id = "given up", UUID(int=4711)
    async with bank.opened(f"sqlite+aiosqlite:///{tmp_path}/bank.db"), Rehearsal(strict=False) as rehearsal:
        await bank.pay_in("kim", 50_00)
        service = await rehearsal.add(payment.service)
        await rehearsal.say(payment.OrderPlaced(order_id, "kim", 21_00), saga=saga)
        await rehearsal.run()
        if unanswered:
            # The second of two requests without an answer is carried out.
            await bank.leave_unanswered("kim", 2 * 10 + unanswered)
            await rehearsal.say(payment.StockReserved(order_id), saga=saga)
            await rehearsal.run()
            assert list(await bank.charges()) == [str(order_id)]
        await rehearsal.say(orders.OrderGivenUp(order_id), saga=saga)
        await rehearsal.run()
        await bank.leave_unanswered("kim", 0)
        if not unanswered:
            await rehearsal.say(payment.StockReserved(order_id), saga=saga)
        await rehearsal.advance(timedelta(hours=1))
        assert await service.parked() == []
        assert await bank.charges() == {}
        assert await bank.balances() == {"kim": 50_00, bank.SHOP: 0}
        assert rehearsal.said(payment.PaymentTaken) == []


def test_the_services_speak_of_the_same_events() -> None:
    """Each declares its own view of an event; names match, so that what one handles another one publishes."""
    for services in (FULFILMENT, ISLAND, ENROLMENT):
        declared = choreography(services)
        assert declared.handled().keys() <= declared.emitted().keys()


def test_the_maps_are_current() -> None:
    """What docs/streamtech.md draws is what the code declares: `python -m examples.streamtech.maps`."""
    page = maps.PAGE.read_text()
    assert all(f"<!-- map: {name} -->" in page for name in maps.MAPS)
    assert maps.redrawn(page) == page


def test_the_lint_has_nothing_to_say() -> None:
    """No step without compensation, no event that nobody handles, no wait without a deadline, no saga without end."""
    for services in (FULFILMENT, ISLAND, ENROLMENT):
        assert lint(choreography(services)) == []


def test_the_lint_knows_what_the_reordering_has_made_superfluous() -> None:
    """Points are never revoked any more; that Orders still listens is the one finding."""
    (finding,) = lint(choreography(REORDERED))
    assert (finding.code, finding.service, finding.subject) == ("SP002", "orders", "keep_record")
    assert "loyalty.points-revoked.v1" in finding.message
