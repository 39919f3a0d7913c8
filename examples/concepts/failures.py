"""A business failure is an answer and goes on as an event; a technical failure is tried again and says nothing."""

from __future__ import annotations

from datetime import timedelta

import anyio

from examples.concepts.events import OrderPlaced, PaymentDeclined, PaymentTaken, show
from sagapost import BusinessFailure, RetryPolicy, Service, StepContext
from sagapost.core import Backoff
from sagapost.sagas.testing import Rehearsal


class Gateway:
    """The bank's service: away at first, and it declines what is over the limit."""

    calls = 0

    async def charge(self, cents: int) -> None:
        self.calls += 1
        if self.calls <= 2:
            raise TimeoutError("the payment gateway does not answer")
        if cents > 100_00:
            raise LookupError("insufficient funds")


gateway = Gateway()
payment = Service("payment", source="https://payment.example")


@payment.on(
    OrderPlaced,
    emits=[PaymentTaken],
    fails_with=[PaymentDeclined],
    likely_to_fail=True,
    retry=RetryPolicy(quick=0, attempts=50, backoff=Backoff(base=timedelta(seconds=10), cap=timedelta(hours=1))),
)
async def take_payment(placed: OrderPlaced, ctx: StepContext) -> None:
    cents = 30_00 if placed.item == "blue-train" else 900_00
    try:
        await gateway.charge(cents)
    except LookupError as error:
        # The bank has answered. Asking again would not change the answer.
        raise BusinessFailure(PaymentDeclined(placed.order, str(error))) from error
    # A TimeoutError is not caught: nobody knows the answer yet, so the inbox asks again.
    await ctx.publish(PaymentTaken(placed.order, cents))


async def main() -> None:
    async with Rehearsal(strict=False) as stage:
        service = await stage.add(payment)
        await stage.say(OrderPlaced("1", "blue-train"))
        await stage.run()
        (parked,) = await service.parked()
        print(f"waiting after {parked.attempts} attempt, for a technical reason:")
        print(" ", parked.error)
        await stage.advance(timedelta(hours=1))
        await stage.say(OrderPlaced("2", "golden-train"))
        await stage.run()
        print(f"after {gateway.calls} calls of the gateway:")
        show(stage)


if __name__ == "__main__":
    anyio.run(main)
