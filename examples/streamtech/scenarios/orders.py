"""Scenarios of order fulfilment: one order on its way through all services, until something happens."""

from __future__ import annotations

from examples.streamtech import bank
from examples.streamtech.scenarios.stage import Stage


async def happy(stage: Stage) -> None:
    """Reserved, paid, points awarded, packed, dispatched."""
    await stage.stock("blue-train", 5)
    await stage.account("ada", 100_00)
    order = await stage.order("blue-train", customer="ada", quantity=2, cents=39_50)
    await stage.order_ends(
        order,
        {
            "order": "completed",
            "payment": "taken",
            "customer has": "EUR 60.50",
            "goods": "dispatched",
            "can be promised": 3,
            "on the shelf": 3,
            "points": 39,
            "mails": "We are packing, On its way",
            "on record": "",
        },
    )


async def insufficient_stock(stage: Stage) -> None:
    """The first step says no: nothing was done yet, so only the order itself is cancelled."""
    await stage.stock("kind-of-blue", 1)
    await stage.account("bob", 100_00)
    order = await stage.order("kind-of-blue", customer="bob", quantity=2, cents=40_00)
    await stage.order_ends(
        order,
        {
            "order": "cancelled",
            "why": "kind-of-blue is out of stock",
            "payment": None,
            "customer has": "EUR 100.00",
            "goods": None,
            "can be promised": 1,
            "points": 0,
            "mails": "",
            "on record": "",
        },
    )


async def payment_declined(stage: Stage) -> None:
    """The bank says no. That is an answer and is not asked for again: the reservation is undone."""
    await stage.stock("giant-steps", 4)
    await stage.account("carol", 10_00)
    order = await stage.order("giant-steps", customer="carol", quantity=1, cents=24_99)
    await stage.order_ends(
        order,
        {
            "order": "cancelled",
            "why": "the payment was declined: carol does not have 2499 cents",
            "payment": None,
            "customer has": "EUR 10.00",
            "goods": None,
            "can be promised": 4,
            "points": 0,
            "mails": "",
            "on record": "stock released",
        },
    )


async def gateway_timeout(stage: Stage) -> None:
    """The bank says nothing, four times. That is an error: asked again until it answers, and charged once."""
    await stage.stock("a-love-supreme", 2)
    await stage.account("dave", 50_00)
    await bank.leave_unanswered("dave", 4)
    stage.say("the bank does not answer the next four requests for dave; it carries out two of them all the same")
    order = await stage.order("a-love-supreme", customer="dave", quantity=1, cents=21_00)
    await stage.order_ends(
        order,
        {
            "order": "completed",
            "payment": "taken",
            "customer has": "EUR 29.00",
            "goods": "dispatched",
            "can be promised": 1,
            "points": 21,
            "mails": "We are packing, On its way",
        },
    )


async def item_missing(stage: Stage) -> None:
    """Paid, points awarded, mail written, and then the shelf is empty: everything is undone, newest step first."""
    await stage.stock("head-hunters", 3, on_shelf=0)
    await stage.account("erin", 80_00)
    order = await stage.order("head-hunters", customer="erin", quantity=1, cents=33_00)
    await stage.order_ends(
        order,
        {
            "order": "cancelled",
            "why": "head-hunters is not on the shelf",
            "payment": "refunded",
            "customer has": "EUR 80.00",
            "goods": None,
            "can be promised": 3,
            "points": 0,
            "mails": "We are packing, Your order is cancelled",
            "on record": "refunded 3300 cents, revoked 33 points, stock released",
        },
    )


async def points_after_dispatch(stage: Stage) -> None:
    """The same failure with points awarded last: one thing fewer to undo, since it was never done."""
    await stage.stock("a-tribute-to-jack-johnson", 3, on_shelf=0)
    await stage.account("frank", 80_00)
    missing = await stage.order("a-tribute-to-jack-johnson", customer="frank", quantity=1, cents=33_00)
    await stage.order_ends(
        missing,
        {
            "order": "cancelled",
            "payment": "refunded",
            "customer has": "EUR 80.00",
            "goods": None,
            "points": 0,
            "mails": "We are packing, Your order is cancelled",
            "on record": "refunded 3300 cents, stock released",
        },
    )


async def courier_tomorrow(stage: Stage) -> None:
    """The van is full. Nothing is undone for that: dispatch is tried again tomorrow (forward recovery)."""
    await stage.stock("mingus-ah-um", 2)
    await stage.account("grace", 60_00)
    await stage.courier(0)
    stage.say("the courier takes nothing more today")
    order = await stage.order("mingus-ah-um", customer="grace", quantity=1, cents=18_00)
    await stage.order_is(order, "goods", "packed")
    await stage.is_parked("warehouse", str(order))
    await stage.courier(1000)
    await stage.days_pass(1)
    await stage.order_ends(
        order,
        {
            "order": "completed",
            "overdue": False,
            "payment": "taken",
            "customer has": "EUR 42.00",
            "goods": "dispatched",
            "mails": "We are packing, On its way",
            "on record": "",
        },
    )


async def stuck(stage: Stage) -> None:
    """The bank is away for days: the deadline passes, and a person rolls the saga back before the bank is back."""
    await stage.stock("time-out", 2)
    await stage.account("heidi", 70_00)
    await bank.leave_unanswered("heidi", 1_000_001)
    stage.say("the bank is away")
    order = await stage.order("time-out", customer="heidi", quantity=1, cents=25_00)
    await stage.order_is(order, "order", "confirmed")
    await stage.is_parked("payment", str(order))
    await stage.days_pass(3)
    await stage.decide("orders", "overdue", "give-up", by="mallory", note="the bank is down")
    await stage.order_is(order, "goods", None)
    await stage.has_rolled_back("payment", str(order))
    await bank.leave_unanswered("heidi", 0)
    stage.say("the bank is back; Payment comes too late, and asks it only for what it charged without an answer")
    await stage.days_pass(1)
    await stage.order_ends(
        order,
        {
            "order": "cancelled",
            "why": "task 1 (overdue) resolved as 'give-up' by mallory: the bank is down",
            "overdue": True,
            "payment": None,
            "customer has": "EUR 70.00",
            "goods": None,
            "can be promised": 2,
            "points": 0,
            "mails": "",
            "on record": "stock released",
        },
    )


async def island(stage: Stage) -> None:
    """Packing and dispatch led by a coordinator inside Warehouse; the van is full, and comes again tomorrow."""
    await stage.stock("maiden-voyage", 2)
    await stage.account("niaj", 60_00)
    await stage.courier(0)
    stage.say("the courier takes nothing more today")
    order = await stage.order("maiden-voyage", customer="niaj", quantity=1, cents=18_00)
    await stage.order_is(order, "goods", "packed")
    await stage.is_scheduled("warehouse", str(order))
    await stage.courier(1000)
    await stage.days_pass(1)
    await stage.order_ends(
        order,
        {
            "order": "completed",
            "payment": "taken",
            "customer has": "EUR 42.00",
            "goods": "dispatched",
            "on the shelf": 1,
            "points": 18,
            "mails": "We are packing, On its way",
        },
    )


async def island_fails(stage: Stage) -> None:
    """The coordinator cannot pack: the island is undone as one step, and with it everything around it."""
    await stage.stock("speak-no-evil", 3, on_shelf=0)
    await stage.account("olivia", 80_00)
    order = await stage.order("speak-no-evil", customer="olivia", quantity=1, cents=33_00)
    await stage.order_ends(
        order,
        {
            "order": "cancelled",
            "payment": "refunded",
            "customer has": "EUR 80.00",
            "goods": None,
            "can be promised": 3,
            "points": 0,
            "mails": "We are packing, Your order is cancelled",
            "on record": "refunded 3300 cents, revoked 33 points, stock released",
        },
    )
