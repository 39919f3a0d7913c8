"""A service as a participant in sagas: who it is, where its ledger is, and how it says what happens to its part."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.clock import Clock, SystemClock
from sagapost.core.databases import aware, kit_of
from sagapost.core.envelope import Event
from sagapost.core.schema import tables_beside
from sagapost.outbox.outbox import Outbox
from sagapost.sagas.ledger import Ledger
from sagapost.sagas.tables import SagaTables

__all__ = ["Participant"]


class Participant:
    """One service's part in sagas, in whoever's transaction.

    :param service: the service's name; the same as its inbox's.
    :param outbox: what compensations and lifecycle events are published through.
    :param tables: where the ledger is kept; default: beside the outbox, in its MetaData, schema and prefix.
    :param announce: also publish what happens to rollbacks (`sagapost.sagas.events`), for a tracker.
    """

    def __init__(
        self,
        service: str,
        *,
        outbox: Outbox,
        tables: SagaTables | None = None,
        announce: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.service = service
        self.outbox = outbox
        self.tables = tables if tables is not None else tables_beside(SagaTables, outbox.tables)
        self.announce = announce
        self.clock: Clock = clock if clock is not None else SystemClock()
        """What deadlines are reckoned from and, on SQLite, when compensations are due. Tests may set another."""
        self._ledgers: dict[tuple[str, Clock], Ledger] = {}

    def ledger(self, session: AsyncSession) -> Ledger:
        """Return the ledger's statements for the session's database."""
        kit = kit_of(session.get_bind())
        ledger = self._ledgers.get((kit.name, self.clock))
        if ledger is None:
            ledger = Ledger(self.service, self.tables, kit.moments(self.clock))
            self._ledgers[kit.name, self.clock] = ledger
        return ledger

    async def now(self, session: AsyncSession) -> datetime:
        """Return the time by the database's clock, the one that all hosts share; where it has none, by `clock`."""
        now: datetime = (await session.execute(self.ledger(session).now())).scalar_one()
        return aware(now)

    async def tell(self, session: AsyncSession, payload: object, saga: str) -> Event | None:
        """Publish a lifecycle event, where a tracker runs."""
        if not self.announce:
            return None
        return await self.outbox.publish(session, payload, correlationid=saga, key=saga)
