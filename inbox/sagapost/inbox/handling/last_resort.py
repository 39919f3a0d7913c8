"""What is done in place of making a message a dead letter, where its handlers declare something."""

from __future__ import annotations

from sagapost.core.errors import DecodingError
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.context import Context
from sagapost.inbox.declared.outcomes import Exhausted, Instead
from sagapost.inbox.handling.execution import decode
from sagapost.inbox.kept.parking import ParkingDecision

__all__ = ["last_resort_of"]

_BY_HANDLERS = frozenset({"failed", "retry", "conflict", "rejected"})
"""Reasons that are the outcome of a handler; anything else means that the message cannot be given to one."""


def last_resort_of(message: Message, parked: ParkingDecision) -> Instead | None:
    """Return what the handlers declare with `on_exhausted`; None: nothing, or the message is not dead yet."""
    if parked.state != "dead" or parked.reason not in _BY_HANDLERS:
        return None
    if all(call.handler.on_exhausted is None for call in message.calls):
        return None
    try:
        payloads = decode(message)
    except DecodingError:
        return None
    exhausted = Exhausted(parked.reason, parked.error, parked.attempts)

    async def work(ctx: Context) -> None:
        for call, payload in zip(message.calls, payloads, strict=True):
            if call.handler.on_exhausted is not None:
                await call.handler.on_exhausted(payload, ctx, exhausted)

    return Instead(work, reason="on_exhausted")
