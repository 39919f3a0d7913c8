"""Acknowledging in batches: what was committed while one acknowledgement was on its way goes with the next."""

from __future__ import annotations

from sagapost.core.broker import Delivery, Subscription
from sagapost.core.life import Signal
from sagapost.core.observer import Observer
from sagapost.inbox.declared.observations import Acknowledged

__all__ = ["Receipt", "Settlement"]


class Settlement:
    """The acknowledgements of one subscription, and what is not yet settled on it."""

    def __init__(self, subscription: Subscription, observer: Observer, consumer: str) -> None:
        self._subscription = subscription
        self._observer = observer
        self._consumer = consumer
        self._done: list[Delivery] = []
        self._refused: list[Delivery] = []
        self._handed_in = Signal()
        self._unsettled = 0
        """Handed in and not yet settled."""
        self._settled = Signal()
        self.in_hand = 0
        """Messages received and not yet settled."""
        self.bytes_in_hand = 0

    def received(self, delivery: Delivery) -> None:
        """Count a delivery."""
        self.in_hand += 1
        self.bytes_in_hand += delivery.size

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge soon. Only for what is committed."""
        self._done.append(delivery)
        self._unsettled += 1
        self._handed_in.set()

    def refuse(self, delivery: Delivery) -> None:
        """Hand back for the broker's dead letters, soon."""
        self._refused.append(delivery)
        self._unsettled += 1
        self._handed_in.set()

    async def release(self, *deliveries: Delivery) -> None:
        """Give back untouched, now."""
        await self._subscription.release(*deliveries)
        self._count_off(deliveries)

    async def run(self) -> None:
        """Settle until cancelled.

        :raises BrokerUnavailableError: if the connection is gone; what was not acknowledged comes again.
        """
        while True:
            await self._handed_in.wait()
            done, self._done = self._done, []
            refused, self._refused = self._refused, []
            if done:
                await self._subscription.ack(*done)
                self._unsettled -= len(done)
                self._count_off(done)
                self._observer.notify(Acknowledged(self._consumer, len(done)))
            for delivery in refused:
                await self._subscription.reject(delivery, requeue=False)
                self._unsettled -= 1
                self._count_off((delivery,))

    async def flushed(self) -> None:
        """Wait until everything handed in so far is settled."""
        while self._unsettled:
            await self._settled.wait()

    async def until_below(self, bytes_: int) -> None:
        """Wait until no more than this many bytes are in flight."""
        while self.bytes_in_hand > bytes_:
            await self._settled.wait()

    def _count_off(self, deliveries: list[Delivery] | tuple[Delivery, ...]) -> None:
        self.in_hand -= len(deliveries)
        self.bytes_in_hand -= sum(delivery.size for delivery in deliveries)
        self._settled.set()


class Receipt:
    """A delivery that is owed its settlement once all that was made of it has come to an end."""

    __slots__ = ("_open", "delivery", "settlement")

    def __init__(self, delivery: Delivery, settlement: Settlement, *, messages: int = 1) -> None:
        self.delivery = delivery
        self.settlement = settlement
        self._open = messages

    def ended(self, *, refuse: bool = False) -> None:
        """Take note that one of its messages is committed, parked, or (`refuse`) not wanted; settle with the last."""
        self._open -= 1
        if self._open:
            return
        if refuse:
            self.settlement.refuse(self.delivery)
        else:
            self.settlement.ack(self.delivery)
