"""The tables of a service, made once for each MetaData, and the names of the services that share them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.exc import InvalidRequestError

from sagapost.core.errors import ConfigurationError
from sagapost.core.schema import SchemaPart, install_schema, with_needed
from sagapost.inbox.declared.tables import InboxTables
from sagapost.outbox.tables import OutboxTables
from sagapost.sagas.tables import SagaTables

__all__ = ["ServiceTables"]

_INFO = "sagapost.service"


class ServiceTables:
    """The tables of outbox, inbox and sagas in one MetaData, with one schema and one prefix.

    Services that share a database share them, so there is one such object for a place: `for_service` returns it.
    """

    def __init__(self, metadata: MetaData, *, schema: str | None = None, prefix: str = "") -> None:
        try:
            self.outbox = OutboxTables(metadata, schema=schema, prefix=prefix)
            self.inbox = InboxTables(metadata, schema=schema, prefix=prefix)
            self.sagas = SagaTables(metadata, schema=schema, prefix=prefix)
        except InvalidRequestError as error:
            raise ConfigurationError(
                f"The MetaData already holds a table of sagapost's names: {error}. A Service makes its tables itself; "
                "leave out OutboxTables(metadata), InboxTables(metadata) and SagaTables(metadata), or give prefix=."
            ) from error
        self.services: set[str] = set()
        """Names of the services that were declared on these tables."""

    @classmethod
    def for_service(
        cls, name: str, metadata: MetaData, *, schema: str | None, prefix: str, replaces: str | None
    ) -> ServiceTables:
        """Return the tables of this place, making them for its first service.

        :param replaces: the name of a service that need not be alone there.
        :raises ConfigurationError: if a service of that name is there already: both would share one queue and take
            each other's events.
        """
        places: dict[tuple[str | None, str], ServiceTables] = metadata.info.setdefault(_INFO, {})
        tables = places.get((schema, prefix))
        if tables is None:
            tables = places[schema, prefix] = cls(metadata, schema=schema, prefix=prefix)
        if name in tables.services - {replaces}:
            raise ConfigurationError(
                f"The service {name!r} is declared twice in one MetaData, so both would share one queue and take each "
                "other's events. Declare it once and import it, or give one of them another name. One that is "
                "deployed in the other's place says replaces=."
            )
        tables.services.add(name)
        return tables

    @property
    def versions(self) -> Table:
        """The table that records which parts are installed."""
        return self.outbox.versions

    @property
    def parts(self) -> Sequence[SchemaPart]:
        """What is installed and checked, in this order."""
        return with_needed([self.outbox.part, self.inbox.part, self.sagas.part])

    def install(self, connection: Connection) -> list[str]:
        """Create what is missing, as `sagapost db upgrade` does; return the names of the parts that changed.

        ``await connection.run_sync(warehouse.tables.install)``

        :raises SchemaError: if the database holds a part in a newer version than this release knows.
        """
        return install_schema(connection, self.versions, self.parts)
