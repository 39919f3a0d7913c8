"""The publishing side of the in-process broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import anyio
import anyio.lowlevel

from sagapost.core.broker import Outgoing, PublishResult, Unknown
from sagapost.core.errors import BrokerUnavailableError

__all__ = ["MemoryConfirmation", "MemoryPublisher"]


class MemoryConfirmation:
    """The pending answer to one batch."""

    def __init__(self, batch: Sequence[Outgoing]) -> None:
        self.batch = batch
        self._results: Sequence[PublishResult] | None = None
        self._answered = anyio.Event()

    def answer(self, results: Sequence[PublishResult]) -> None:
        """Set the results; the first answer stands."""
        if self._results is None:
            self._results = results
            self._answered.set()

    async def wait(self) -> Sequence[PublishResult]:
        """Wait for the answer to every message of the batch."""
        await self._answered.wait()
        assert self._results is not None  # noqa: S101 - set before the event, for the type checker
        return self._results


class MemoryPublisher:
    """One ordered stream of messages into the broker."""

    def __init__(
        self, publish: Callable[[Outgoing], PublishResult], *, blocked: bool, holding: bool, max_message_bytes: int
    ) -> None:
        self._publish = publish
        self._blocked = blocked
        self._max_message_bytes = max_message_bytes
        self._holding = holding
        self._stalled: list[MemoryConfirmation] = []
        self._held: list[tuple[MemoryConfirmation, Sequence[PublishResult]]] = []
        self._lost: str | None = None
        self._gone = anyio.Event()

    @property
    def blocked(self) -> bool:
        """Whether the broker has asked publishers to pause."""
        return self._blocked

    @property
    def max_message_bytes(self) -> int | None:
        """Largest event data that is taken."""
        return self._max_message_bytes

    async def send(self, batch: Sequence[Outgoing]) -> MemoryConfirmation:
        """Hand a batch to the broker."""
        await anyio.lowlevel.checkpoint()
        if self._lost is not None:
            raise self._closed()
        confirmation = MemoryConfirmation(tuple(batch))
        if self._blocked:
            self._stalled.append(confirmation)
        else:
            self._process(confirmation)
        return confirmation

    async def until_lost(self) -> NoReturn:
        """Wait until this publisher is closed, and raise."""
        await self._gone.wait()
        raise self._closed()

    def _closed(self) -> BrokerUnavailableError:
        return BrokerUnavailableError(f"This publisher is closed: {self._lost}. Open another one.")

    def _process(self, confirmation: MemoryConfirmation) -> None:
        results = [self._publish(outgoing) for outgoing in confirmation.batch]
        if self._holding:
            self._held.append((confirmation, results))
        else:
            confirmation.answer(results)

    # --- called by the broker ---

    def block(self) -> None:
        """Stop taking messages in, as a broker under a resource alarm stops reading."""
        self._blocked = True

    def unblock(self) -> None:
        """Take in what was sent meanwhile, in order."""
        self._blocked = False
        stalled, self._stalled = self._stalled, []
        for confirmation in stalled:
            self._process(confirmation)

    def hold(self) -> None:
        """Publish, but keep the answers back."""
        self._holding = True

    def give_answers(self) -> None:
        """Hand out the answers kept back."""
        self._holding = False
        held, self._held = self._held, []
        for confirmation, results in held:
            confirmation.answer(results)

    def lose(self, reason: str) -> None:
        """End the connection: whatever has no answer yet never gets one."""
        if self._lost is not None:
            return
        self._lost = reason
        self._gone.set()
        for confirmation in (*(confirmation for confirmation, _ in self._held), *self._stalled):
            confirmation.answer([Unknown(reason)] * len(confirmation.batch))
        self._held.clear()
        self._stalled.clear()
