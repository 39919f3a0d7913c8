"""Group commit: several messages in one transaction, in the hope that none fails.

Optimistic: one dedup statement claims all keys, the handlers run one after the other on one session, whose single
flush writes what they added in few statements, and one commit makes all of it durable. If anything goes wrong,
everything is rolled back, and the messages are run one by one, where each finds its own end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.errors import DecodingError
from sagapost.inbox.arriving.message import Message
from sagapost.inbox.declared import observations as obs
from sagapost.inbox.handling.execution import Execution, decode
from sagapost.inbox.handling.faults import kind_of
from sagapost.inbox.handling.guarded import EndedError, LateError, Progress
from sagapost.inbox.handling.transaction import Toolbox
from sagapost.inbox.kept.database import Link

__all__ = ["GroupCommit", "Grouped"]


@dataclass(frozen=True, slots=True)
class Broken:
    """A group whose transaction a handler has ended: keys of messages may be committed that were never handled."""

    error: EndedError
    begun: Sequence[Message]
    """Some of what these did may be committed."""
    not_begun: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Grouped:
    """What came of messages that shared a transaction; those not counted here were handled."""

    duplicates: int
    behind: Sequence[Message] = ()
    """Parked: an earlier message of their ordering key is."""
    broken: Broken | None = None
    """Set if a handler ended the transaction that they shared; then no other figure is."""


class GroupCommit:
    """Runs messages together."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._observer = tools.observer
        self._consumer = tools.inbox.name

    async def run(self, link: Link, messages: Sequence[Message]) -> Grouped | None:
        """Bring all of the messages to their end, or none. None: none was, run them one by one.

        :raises StoreUnavailableError: if the database went away; as for `Transactions.run`.
        """
        begun: list[Message] = []
        try:
            return await self._tools.guard.run(
                link, lambda connection, outer, progress: self._run(connection, outer, messages, progress, begun)
            )
        except LateError:
            return None
        except EndedError as error:
            self._observer.notify(obs.GroupUndone(self._consumer, len(messages), kind_of(error)))
            # By identity: a group may hold two copies of one message.
            handled = {id(message) for message in begun}
            return Grouped(0, broken=Broken(error, begun, [each for each in messages if id(each) not in handled]))

    # --- in the greenlet ---

    def _run(
        self,
        connection: Connection,
        outer: AsyncConnection,
        messages: Sequence[Message],
        progress: Progress,
        handled: list[Message],
    ) -> Grouped | None:
        try:
            payloads = {id(message): decode(message) for message in messages}
        except DecodingError:
            return None
        began = time.perf_counter()
        self._observer.notify(obs.GroupStarted(self._consumer, len(messages)))
        try:
            claimed = self._tools.claims.claim_all(connection, messages)
        except SQLAlchemyError as error:
            if not self._tools.database.kit.is_conflict(error):
                raise
            connection.rollback()
            return None
        if claimed is None:
            connection.rollback()
            return None
        fresh, behind = claimed.own, claimed.behind
        if fresh or behind:
            self._observer.notify(obs.GroupClaimed(self._consumer, len(messages), len(fresh) + len(behind)))
        if not fresh:
            # No handler has anything to do; but messages may be parked, or attempts struck from the record.
            connection.commit()
            return self._ended([], behind, len(messages), began)
        execution = self._tools.execution(connection, outer, progress)
        try:
            for message in messages:
                # Of two copies of a message in one group the first is handled.
                if message.key in fresh:
                    fresh.discard(message.key)
                    handled.append(message)
                    self._call(execution, message, payloads[id(message)])
            self._observer.notify(obs.GroupReturned(self._consumer, len(handled)))
            execution.write()
            self._observer.notify(obs.GroupWritten(self._consumer, len(handled)))
            execution.commit()
        except BaseException as raised:
            cause = execution.failure(raised)
            if isinstance(cause, EndedError):
                raise cause from None
            self._observer.notify(obs.GroupUndone(self._consumer, len(messages), type(cause).__name__))
            return None
        return self._ended(handled, behind, len(messages), began)

    def _call(self, execution: Execution, message: Message, payloads: Sequence[object]) -> None:
        for call, payload in zip(message.calls, payloads, strict=True):
            execution.handle(call, payload, message, message.attempts + 1)
            if (ended := execution.ended()) is not None:
                raise ended

    def _ended(self, handled: Sequence[Message], behind: Sequence[Message], messages: int, began: float) -> Grouped:
        duplicates = messages - len(handled) - len(behind)
        if behind:
            self._observer.notify(obs.GroupParked(self._consumer, len(behind)))
        if handled or duplicates:
            now = self._tools.clock.now()
            oldest = min((message.event.time for message in handled), default=now)
            self._observer.notify(
                obs.GroupHandled(
                    self._consumer,
                    Counter(message.event.type for message in handled),
                    duplicates,
                    seconds=time.perf_counter() - began if handled else 0.0,
                    lag_seconds=(now - oldest).total_seconds(),
                )
            )
        return Grouped(duplicates, behind)
