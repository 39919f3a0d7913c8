"""An island as a service would declare it: pick, then label and insure at once, then dispatch; with its workers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import time, timedelta
from types import TracebackType
from typing import Any, Self, TypeAlias
from zoneinfo import ZoneInfo

import anyio
import msgspec
from sqlalchemy import select

from sagapost.core import event
from sagapost.inbox import At, BusinessFailure, RetryPolicy, Schedule
from sagapost.inbox.declared import observations as obs
from sagapost.sagas import Compensator, CompensatorSettings, StepContext
from sagapost.sagas.orchestration import Island
from sagapost.sagas.orchestration.messages import StepTimedOut
from tests.inbox.harness import BOUND
from tests.sagas.recovery import SAGA, OrderShipped, ShippingFailed, Warehouse, an_event

__all__ = ["Fulfilment", "OrderPaid", "StepTimedOut"]


@event("payment.order-paid.v1")
class OrderPaid(msgspec.Struct):
    """Starts the island."""

    order_id: str
    insured: bool = True


@event("warehouse.pick-items.v1")
class PickItems(msgspec.Struct):
    """Command."""

    order_id: str


@event("warehouse.items-picked.v1")
class ItemsPicked(msgspec.Struct):
    """Its answer."""

    order_id: str
    shelf: str = ""


@event("warehouse.item-missing.v1")
class ItemMissing(msgspec.Struct):
    """Its failure."""

    order_id: str


@event("warehouse.put-items-back.v1")
class PutItemsBack(msgspec.Struct):
    """Its undoing."""

    order_id: str
    shelf: str


@event("warehouse.items-put-back.v1")
class ItemsPutBack(msgspec.Struct):
    """The answer to that."""

    order_id: str


@event("warehouse.print-label.v1")
class PrintLabel(msgspec.Struct):
    """Command."""

    order_id: str


@event("warehouse.label-printed.v1")
class LabelPrinted(msgspec.Struct):
    """Its answer."""

    order_id: str


@event("warehouse.void-label.v1")
class VoidLabel(msgspec.Struct):
    """Its undoing, which nothing answers."""

    order_id: str


@event("warehouse.insure.v1")
class Insure(msgspec.Struct):
    """Command."""

    order_id: str


@event("warehouse.insured.v1")
class Insured(msgspec.Struct):
    """Its answer."""

    order_id: str


@event("warehouse.insurance-denied.v1")
class InsuranceDenied(msgspec.Struct):
    """Its failure."""

    order_id: str


@event("warehouse.cancel-insurance.v1")
class CancelInsurance(msgspec.Struct):
    """Its undoing."""

    order_id: str


@event("warehouse.insurance-cancelled.v1")
class InsuranceCancelled(msgspec.Struct):
    """The answer to that."""

    order_id: str


@event("warehouse.book-courier.v1")
class BookCourier(msgspec.Struct):
    """Command."""

    order_id: str


@event("warehouse.courier-booked.v1")
class CourierBooked(msgspec.Struct):
    """Its answer."""

    order_id: str
    courier: str


@event("warehouse.courier-unavailable.v1")
class CourierUnavailable(msgspec.Struct):
    """Not today."""

    order_id: str


class State(msgspec.Struct):
    """What a run knows."""

    order_id: str
    insured: bool
    shelf: str = ""
    courier: str = ""


Worker: TypeAlias = Callable[[Any, StepContext], Awaitable[object]]

SILENT = object()
"""Returned by a worker that does not answer."""

TOMORROW = RetryPolicy(
    quick=0, schedule=Schedule(At(time(8, tzinfo=ZoneInfo("Europe/Berlin")), days=1), repeat_last=1)
)


class Fulfilment:
    """The service with its island; each test says what its workers answer. Effects are rows named by the command."""

    def __init__(
        self,
        service: Warehouse,
        *,
        pick_deadline: timedelta = timedelta(minutes=30),
        pick_retry: RetryPolicy | None = None,
        escalate: bool = False,
        pivot: bool = False,
    ) -> None:
        self.service = service
        self.answers: dict[type, Worker] = {
            PickItems: self._answer(lambda command: ItemsPicked(command.order_id, "A7")),
            PutItemsBack: self._answer(lambda command: ItemsPutBack(command.order_id)),
            PrintLabel: self._answer(lambda command: LabelPrinted(command.order_id)),
            VoidLabel: self._answer(lambda command: SILENT),
            Insure: self._answer(lambda command: Insured(command.order_id)),
            CancelInsurance: self._answer(lambda command: InsuranceCancelled(command.order_id)),
            BookCourier: self._answer(lambda command: CourierBooked(command.order_id, "DHL")),
        }
        self.effect_of: Callable[[Any], str] = lambda command: type(command).__name__
        self.ended: list[object] = []
        self._changed = anyio.Event()
        inbox, sagas = service.inbox, service.sagas
        island = self.island = Island("fulfilment", state=State, sagas=sagas, inbox=inbox)

        @island.starts_on(OrderPaid)
        def begin(paid: OrderPaid) -> State:
            return State(paid.order_id, paid.insured)

        @island.step(
            reply=ItemsPicked,
            failures=[ItemMissing],
            deadline=pick_deadline,
            retry=pick_retry if pick_retry is not None else RetryPolicy(quick=0, attempts=1),
            escalate=escalate,
            pivot=pivot,
        )
        def pick(state: State) -> PickItems:
            return PickItems(state.order_id)

        @pick.on_reply
        def picked(state: State, reply: ItemsPicked) -> None:
            state.shelf = reply.shelf

        @pick.compensation(undone=ItemsPutBack)
        def put_back(state: State) -> PutItemsBack:
            return PutItemsBack(state.order_id, state.shelf)

        with island.parallel():

            @island.step(reply=LabelPrinted, deadline=timedelta(hours=1))
            def label(state: State) -> PrintLabel:
                return PrintLabel(state.order_id)

            @label.compensation()
            def void(state: State) -> VoidLabel:
                return VoidLabel(state.order_id)

            @island.step(
                reply=Insured,
                failures=[InsuranceDenied],
                deadline=timedelta(hours=2),
                when=lambda state: state.insured,
            )
            def insure(state: State) -> Insure:
                return Insure(state.order_id)

            @insure.compensation(undone=InsuranceCancelled)
            def cancel(state: State) -> CancelInsurance:
                return CancelInsurance(state.order_id)

        @island.step(reply=CourierBooked, retry_on=[CourierUnavailable], retry=TOMORROW)
        def courier(state: State) -> BookCourier:
            return BookCourier(state.order_id)

        @courier.on_reply
        def booked(state: State, reply: CourierBooked) -> None:
            state.courier = reply.courier

        @island.completes
        def shipped(state: State) -> OrderShipped:
            return OrderShipped(state.order_id, state.courier)

        @island.fails
        def failed(state: State, reason: str) -> ShippingFailed:
            return ShippingFailed(state.order_id)

        self.declared = (begin, picked, put_back, void, cancel, booked, shipped, failed)
        for command in self.answers:
            inbox.on(command)(self._work)
        inbox.on(OrderShipped, ShippingFailed)(self._end)

    # --- workers ---

    def _answer(self, make: Callable[[Any], object]) -> Worker:
        async def work(command: Any, ctx: StepContext) -> object:
            await self.service.write(ctx.session, self.effect_of(command))
            return make(command)

        return work

    async def _work(self, command: Any, ctx: StepContext) -> None:
        answer = await self.answers[type(command)](command, ctx)
        if answer is not SILENT:
            await ctx.publish(answer, key=ctx.event.partitionkey)

    def refuses(self, command: type, failure: Callable[[Any], object]) -> None:
        """Let a worker fail in the terms of the business."""

        async def work(payload: Any, ctx: StepContext) -> object:
            raise BusinessFailure(failure(payload))

        self.answers[command] = work

    def keeps_silent(self, command: type, *, times: int = 1_000_000) -> None:
        """Let a worker do its work and not answer, so many times."""
        usual, silent = self.answers[command], 0

        async def work(payload: Any, ctx: StepContext) -> object:
            nonlocal silent
            silent += 1
            answer = await usual(payload, ctx)
            return SILENT if silent <= times else answer

        self.answers[command] = work

    async def _end(self, payload: object, ctx: StepContext) -> None:
        self.ended.append(payload)
        self._changed.set()

    # --- driving ---

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        await self._stack.__aenter__()
        await self._stack.enter_async_context(self.service.consuming(concurrency=4))
        await self._stack.enter_async_context(self.service.relaying())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def pay(self, saga: str = SAGA, *, insured: bool = True) -> None:
        """Send what starts the island."""
        await self.service.send(an_event(OrderPaid(saga, insured), saga=saga, key=saga))

    async def until_ended(self, count: int = 1) -> list[object]:
        """Wait until the island has said its end."""
        with anyio.fail_after(BOUND):
            while len(self.ended) < count:
                self._changed = anyio.Event()
                await self._changed.wait()
        return self.ended

    async def until_handled(self, *types: str) -> None:
        """Wait until events of these types were handled."""
        for type_ in types:
            await self.until_handled_times(type_, 1)

    async def until_handled_times(self, type_: str, count: int) -> None:
        """Wait until so many events of a type were handled."""
        await self.service.seen.until(obs.Handled, count, lambda seen: seen.event_type == type_)

    def compensator(self) -> Compensator:
        """Return what rolls the service's part back."""
        return Compensator(
            self.service.sagas,
            self.service.engine,
            settings=CompensatorSettings(poll_interval=timedelta(milliseconds=20)),
            observer=self.service.seen,
        )

    async def run_states(self) -> list[str]:
        """Return the states of the runs."""
        runs = self.service.saga_tables.islands.runs
        async with self.service.engine.connect() as connection:
            return list((await connection.execute(select(runs.c.state).order_by(runs.c.started_at))).scalars())

    async def step_states(self) -> dict[str, str]:
        """Return the states of the steps of the only run."""
        steps = self.service.saga_tables.islands.steps
        async with self.service.engine.connect() as connection:
            rows = await connection.execute(select(steps.c.step, steps.c.state).order_by(steps.c.position))
            return {row.step: row.state for row in rows}
