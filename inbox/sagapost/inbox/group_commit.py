"""Group commit: several messages in one transaction, in the hope that none fails.

Optimistic: one dedup statement claims all keys, the handlers run one after the other on one session, whose single
flush writes what they added in few statements, and one commit makes all of it durable. If anything goes wrong,
everything is rolled back, and the messages are run one by one, where each finds its own end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import anyio
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sagapost.core.errors import DecodingError
from sagapost.inbox import observations as obs
from sagapost.inbox.database import Link, concerns_availability, is_conflict
from sagapost.inbox.execution import Execution, Progress, decode
from sagapost.inbox.message import Message
from sagapost.inbox.transaction import Toolbox, sole

__all__ = ["GroupCommit"]


class GroupCommit:
    """Runs messages together."""

    def __init__(self, tools: Toolbox) -> None:
        self._tools = tools
        self._observer = tools.observer
        self._consumer = tools.inbox.name

    async def run(self, link: Link, messages: Sequence[Message]) -> int | None:
        """Handle all of the messages, or none; return how many were duplicates. None: none was, run them one by one.

        :raises StoreUnavailableError: if the database went away; as for `Transactions.run`.
        """
        tools = self._tools
        async with tools.database.turn():
            connection = await link.get()
            progress = Progress()
            try:
                with anyio.fail_after(tools.timeout):
                    return await connection.run_sync(self._run, connection, messages, progress)
            except TimeoutError as error:
                await link.give_back(broken=True)
                if progress.stage != "handle":
                    raise tools.database.unavailable(error) from error
                return None
            except BaseException as error:
                await link.give_back(broken=True)
                if isinstance(error, SQLAlchemyError | OSError | EOFError):
                    raise tools.database.unavailable(error) from error
                raise

    # --- in the greenlet ---

    def _run(
        self, connection: Connection, outer: AsyncConnection, messages: Sequence[Message], progress: Progress
    ) -> int | None:
        try:
            payloads = {id(message): decode(message) for message in messages}
        except DecodingError:
            return None
        began = time.perf_counter()
        self._observer.notify(obs.GroupStarted(self._consumer, len(messages)))
        try:
            fresh = self._tools.claims.claim_all(connection, messages)
        except SQLAlchemyError as error:
            if not is_conflict(error):
                raise
            connection.rollback()
            return None
        if not fresh:
            if fresh is None:
                # Some must wait behind a parked message.
                connection.rollback()
                return None
            # Nothing is written, but maybe attempts struck from the record.
            connection.commit()
            return self._all_duplicates(messages)
        self._observer.notify(obs.GroupClaimed(self._consumer, len(messages), len(fresh)))
        execution = self._tools.execution(connection, outer, progress)
        handled: list[Message] = []
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
        except Exception as raised:
            cause = sole(raised)
            if progress.stage == "commit" and concerns_availability(cause):
                raise
            execution.undo()
            self._observer.notify(obs.GroupUndone(self._consumer, len(messages), type(cause).__name__))
            return None
        self._notify_handled(handled, len(messages) - len(handled), began)
        return len(messages) - len(handled)

    def _call(self, execution: Execution, message: Message, payloads: Sequence[object]) -> None:
        for call, payload in zip(message.calls, payloads, strict=True):
            execution.call(call, payload, message, message.attempts + 1)

    def _all_duplicates(self, messages: Sequence[Message]) -> int:
        self._observer.notify(obs.GroupHandled(self._consumer, {}, len(messages), 0.0, 0.0))
        return len(messages)

    def _notify_handled(self, handled: Sequence[Message], duplicates: int, began: float) -> None:
        oldest = min(message.event.time for message in handled)
        self._observer.notify(
            obs.GroupHandled(
                self._consumer,
                Counter(message.event.type for message in handled),
                duplicates,
                seconds=time.perf_counter() - began,
                lag_seconds=(self._tools.clock.now() - oldest).total_seconds(),
            )
        )
