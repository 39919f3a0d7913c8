"""Which tables of sagapost belong into the database of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, Table

from sagapost.core.audit import AuditTables
from sagapost.core.schema import SchemaPart, with_needed
from sagapost.outbox.tables import OutboxTables

if TYPE_CHECKING:
    from sagapost.inbox.declared.tables import InboxTables
    from sagapost.ops.settings import Settings
    from sagapost.sagas.tables import SagaTables
    from sagapost.sagas.tracker.tables import TrackerTables

__all__ = ["Tables", "tables_of"]


class Tables:
    """Every table of sagapost in one database; a relay never imports what only inboxes and sagas have.

    :param with_tracker: whether the tracker's tables are among what is installed and checked: its database is usually
        its own.
    """

    def __init__(self, *, schema: str | None, prefix: str, with_tracker: bool = False) -> None:
        self._metadata = MetaData()
        self._where: dict[str, Any] = {"schema": schema, "prefix": prefix}
        self._with_tracker = with_tracker

    @cached_property
    def outbox(self) -> OutboxTables:
        """What services publish into and relays publish from."""
        return OutboxTables(self._metadata, **self._where)

    @cached_property
    def inbox(self) -> InboxTables:
        """What consumers keep."""
        from sagapost.inbox.declared.tables import InboxTables

        return InboxTables(self._metadata, **self._where)

    @cached_property
    def sagas(self) -> SagaTables:
        """What services keep of their steps, their deadlines and their tasks."""
        from sagapost.sagas.tables import SagaTables

        return SagaTables(self._metadata, **self._where)

    @cached_property
    def tracker(self) -> TrackerTables:
        """What a tracker keeps."""
        from sagapost.sagas.tracker.tables import TrackerTables

        return TrackerTables(self._metadata, **self._where)

    @property
    def audit(self) -> AuditTables:
        """What operators decided about anything in it."""
        return self.outbox.audit

    @property
    def versions(self) -> Table:
        """The table that records which parts are installed."""
        return self.outbox.versions

    @property
    def parts(self) -> Sequence[SchemaPart]:
        """What is installed and checked, in this order."""
        parts = [self.outbox.part, self.inbox.part, self.sagas.part]
        return with_needed([*parts, self.tracker.part] if self._with_tracker else parts)


def tables_of(settings: Settings, *, with_tracker: bool = False) -> Tables:
    """Return the tables with the schema and prefix of the settings."""
    where = settings.connections
    return Tables(schema=where.database_schema, prefix=where.table_prefix, with_tracker=with_tracker)
