"""The consuming service: `sagapost consume tests.chaos.inbox_service:ordered`, or `:unordered`.

What becomes of an event follows from its number, so that the verdict knows it without having been told.
"""

from __future__ import annotations

import os
import signal
import time
from enum import Enum

import msgspec
from sqlalchemy import BigInteger, Column, Double, Identity, MetaData, String, Table

from sagapost.core import event
from sagapost.inbox import BusinessFailure, Context, Inbox, InboxTables, Reject
from sagapost.outbox import Outbox, OutboxTables
from tests.chaos.writer import TYPE

__all__ = ["Accounted", "Declined", "Fate", "Happened", "effects", "fate_of", "metadata", "ordered", "unordered"]

PER_WRITER = 10**9
"""Numbers of one writer; see `tests.chaos.writer`."""


class Fate(Enum):
    """What becomes of an event."""

    EFFECT = "one effect"
    SECOND_TRY = "one effect, after two failures"
    DECLINED = "a business failure"
    POISON = "fails every time"
    REJECTED = "is rejected by the handler"
    KILLER = "kills the process every time"


def fate_of(number: int) -> Fate:
    """Return what becomes of an event."""
    writer, count = divmod(number, PER_WRITER)
    if writer == 1 and count % 10_000 == 300:
        return Fate.KILLER
    if count % 1_000 == 13:
        return Fate.POISON
    if count % 1_000 == 501:
        return Fate.REJECTED
    if count % 100 == 77:
        return Fate.DECLINED
    if count % 200 == 42:
        return Fate.SECOND_TRY
    return Fate.EFFECT


class Happened(msgspec.Struct):
    """What the writers publish."""

    n: int


@event("chaos.accounted.v1")
class Accounted(msgspec.Struct):
    """What the handler publishes with each effect."""

    n: int


@event("chaos.declined.v1")
class Declined(msgspec.Struct):
    """The business failure."""

    n: int


metadata = MetaData()
outbox = Outbox(source="https://accounts.example", tables=OutboxTables(metadata))
tables = InboxTables(metadata)
effects = Table(
    "effects",
    metadata,
    # Nothing here is unique but the position: a second effect must be able to show.
    Column("position", BigInteger, Identity(always=True), primary_key=True),
    Column("event", BigInteger, nullable=False),
    Column("event_id", String(64), nullable=False),
    Column("at", Double, nullable=False),
)

ordered = Inbox("accounts", outbox=outbox, tables=tables, ordered=True)
unordered = Inbox("accounts", outbox=outbox, tables=tables)


@unordered.on(TYPE, payload=Happened, emits=[Accounted, Declined])
@ordered.on(TYPE, payload=Happened, emits=[Accounted, Declined])
async def account(event: Happened, ctx: Context) -> None:
    """Have the effect and publish; then fail, where that is the event's fate: nothing of it may remain."""
    await ctx.session.execute(effects.insert().values(event=event.n, event_id=ctx.event.id, at=time.monotonic()))
    await ctx.publish(Accounted(event.n), key=ctx.event.partitionkey)
    match fate_of(event.n):
        case Fate.KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        case Fate.POISON:
            raise ZeroDivisionError(f"event {event.n} is poison")
        case Fate.REJECTED:
            raise Reject(f"event {event.n} is not for us")
        case Fate.DECLINED:
            raise BusinessFailure(Declined(event.n))
        case Fate.SECOND_TRY if ctx.attempt < 3:
            raise ConnectionRefusedError(f"event {event.n} finds somebody away")
        case _:
            pass
