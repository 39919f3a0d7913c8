"""An operator's request to try again what was given up, as services handle it."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from sagapost.inbox import Inbox
from sagapost.outbox import Outbox
from sagapost.sagas import CompensationContext, Sagas
from sagapost.sagas.events import RetryRequested
from sagapost.sagas.testing.rehearsal import Rehearsal

pytestmark = pytest.mark.anyio

SAGA = "order-4711"


async def test_a_compensation_that_was_given_up_is_tried_again_when_asked() -> None:
    """A stuck saga goes on with the event that `sagapost saga retry` publishes, and is rolled back."""
    outbox, refunded = Outbox(source="https://payment.example"), list[str]()
    sagas = Sagas("payment", outbox=outbox)
    inbox = Inbox("payment", outbox=outbox, context=sagas.context)
    sagas.rolls_back_on(inbox)

    @sagas.compensation()
    async def refund(ctx: CompensationContext) -> None:
        refunded.append(ctx.saga)

    states = sagas.tables.states
    async with Rehearsal() as stage:
        payment = await stage.add(inbox)
        async with payment.sessions.begin() as session:
            await sagas.record(session, SAGA, refund, {}, step_event=None)
            await sagas.begin_rollback(session, SAGA, reason="item missing", cause=None)
            ledger = sagas.ledger(session)
            await session.execute(ledger.failed(1, attempts=10, error="no answer", give_up=True))
            await session.execute(ledger.stick(SAGA))
        await stage.run()
        assert refunded == []
        await stage.say(RetryRequested(reason="the bank is back", by="kim"), saga=SAGA)
        await stage.run()
        assert refunded == [SAGA]
        async with payment.sessions() as session:
            assert await session.scalar(select(states.c.state)) == "rolled_back"
