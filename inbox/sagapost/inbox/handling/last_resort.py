"""What is done in place of making a message a dead letter, where the handler that failed declares something."""

from __future__ import annotations

from sagapost.core.errors import DecodingError
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared.context import Context
from sagapost.inbox.declared.outcomes import Exhausted, Instead
from sagapost.inbox.handling.execution import decode_for
from sagapost.inbox.handling.verdicts import at_fault
from sagapost.inbox.kept.parking import ParkingDecision

__all__ = ["last_resort_of"]

_BY_HANDLERS = frozenset({"failed", "retry", "conflict", "rejected"})
"""Reasons that are the outcome of a handler; anything else means that the message cannot be given to one."""


def last_resort_of(message: Message, parked: ParkingDecision) -> Instead | None:
    """Return what the handler that failed declares with `on_exhausted`; None: nothing, or it is not dead yet."""
    if parked.state != "dead" or parked.reason not in _BY_HANDLERS:
        return None
    call = at_fault(message)
    last_resort = call.handler.on_exhausted if call is not None else None
    if call is None or last_resort is None:
        return None
    try:
        payload = decode_for(call, message)
    except DecodingError:
        return None
    exhausted = Exhausted(parked.reason, parked.error, parked.attempts)

    async def work(ctx: Context) -> None:
        await last_resort(payload, ctx, exhausted)

    return Instead(work, reason="on_exhausted")
