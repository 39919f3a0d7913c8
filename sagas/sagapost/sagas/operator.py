"""What a person can do about a stuck saga: try again, or settle a step by hand. In the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import CursorResult
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.audit import Decision
from sagapost.core.errors import ConfigurationError, NotFoundError
from sagapost.sagas.rollbacks import Rollbacks

__all__ = ["history", "retry_stuck", "settle"]


async def retry_stuck(sagas: Rollbacks, session: AsyncSession, saga: str) -> int:
    """Give the compensations that were given up another round of attempts; return how many."""
    ledger = sagas.ledger(session)
    await session.execute(ledger.lock(saga))
    result = cast("CursorResult[Any]", await session.execute(ledger.retry(saga)))
    await session.execute(ledger.resume(saga))
    return result.rowcount


async def settle(sagas: Rollbacks, session: AsyncSession, saga: str, compensation: int, *, by: str, note: str) -> None:
    """Declare a compensation settled: undone by other means, or left as it is, as the note says.

    The record and the audit keep who decided and why; the rollback goes on with the older steps.

    :raises ConfigurationError: if name or note are empty.
    :raises NotFoundError: if the saga has no such open compensation.
    """
    if not by.strip() or not note.strip():
        raise ConfigurationError("Settling a compensation needs a name and a note: the record is read years later.")
    decision = Decision(by, note)
    ledger = sagas.ledger(session)
    await session.execute(ledger.take(compensation))
    await session.execute(ledger.lock(saga))
    result = cast("CursorResult[Any]", await session.execute(ledger.settle(compensation, by=by, note=note)))
    if not result.rowcount:
        raise NotFoundError(
            f"Saga {saga!r} has no open compensation {compensation} in the service {sagas.service!r}. "
            "List them with `sagapost saga show`."
        )
    about = {"place": sagas.service, "subject": saga, "correlationid": saga}
    statement = sagas.tables.audit.record(decision, "saga", "resolve")
    await session.execute(statement, [{**about, "did": f"settled the compensation {compensation}"}])
    await session.execute(ledger.resume(saga))


async def history(sagas: Rollbacks, session: AsyncSession, saga: str) -> Sequence[Mapping[str, Any]]:
    """Return every undo intent of the saga in this service, oldest first, with what became of it."""
    rows = await session.execute(sagas.ledger(session).history(saga))
    return [dict(row) for row in rows.mappings()]
