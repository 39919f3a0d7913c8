"""`Deadline`: what a step sets and a later step takes back, declared once and named nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from sagapost.core.errors import ConfigurationError
from sagapost.core.naming import event_type_of

__all__ = ["Deadline"]

E = TypeVar("E")

_NAME_BYTES = 100


@dataclass(frozen=True, slots=True)
class Deadline(Generic[E]):
    """A deadline of a saga: unless it is taken back before, its event is published.

    ::

        PAYMENT_DUE = Deadline("payment", OrderOverdue, after=timedelta(hours=1))

        @orders.on(OrderPlaced, deadlines=[PAYMENT_DUE])
        async def place(placed: OrderPlaced, ctx: StepContext) -> None:
            await ctx.deadline(PAYMENT_DUE, OrderOverdue(placed.order))

    :param name: kept with the scheduled event; one of a name is kept per saga and service.
    :param event: class of the event, named with `@event`.
    :param after: how long from the step that sets it.
    :raises ConfigurationError: if the name is empty or over 100 bytes, or the time negative.
    :raises UnnamedEventError: if the class was not named with `@event`.
    """

    name: str
    event: type[E]
    after: timedelta

    def __post_init__(self) -> None:
        if not self.name.isprintable() or not 0 < len(self.name.encode()) <= _NAME_BYTES:
            raise ConfigurationError(f"Deadline(name) has 1 to {_NAME_BYTES} printable bytes, not {self.name!r}.")
        if self.after < timedelta(0):
            raise ConfigurationError(f"Deadline(after=) is a time to wait, not {self.after}.")
        event_type_of(self.event)
