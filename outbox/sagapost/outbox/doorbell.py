"""The writer's side of the doorbell: the statement trigger that wakes a sleeping relay (docs/adr/0008).

NOTIFY takes a lock that all notifying commits of the cluster share, so it must not run on every insert: the trigger
rings only when a relay has announced that it sleeps. It fires once per statement, for every way of writing (ORM, Core,
asyncpg, hand-written SQL). Without it the outbox works all the same, at the relay's poll interval.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sagapost.core.databases import kit_of
from sagapost.core.databases.postgresql import quoting
from sagapost.core.schema import Supplement

__all__ = ["CreateDoorbell", "DropDoorbell"]

_PRESENT = text(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid "
    "WHERE t.tgrelid = to_regclass(:outbox) AND t.tgname = :name AND t.tgenabled <> 'D' AND p.prosecdef)"
)


class CreateDoorbell(Supplement):
    """Creates the trigger and its function, or brings them up to date. Nothing at all where there is no NOTIFY.

    The function runs with the rights of who creates it, so a writer needs no more than INSERT on the outbox. It is
    called inside any INSERT, by any role, under any `search_path`: hence a path of its own, that holds nothing a user
    can write to, and a full name of the one table it reads, found when the function is made.
    """

    what = "the trigger that wakes a sleeping relay"

    def __init__(self, *, outbox: Table, relays: Table, name: str, channel: str) -> None:
        self.outbox = outbox
        self.relays = relays
        self.name = name
        self.channel = channel

    def present(self, connection: Connection) -> bool:
        """Return whether there is nothing to create."""
        if not kit_of(connection).notifies:
            return True
        outbox = {"outbox": quoting.format_table(self.outbox), "name": self.name}
        return bool(connection.execute(_PRESENT, outbox).scalar_one())


class DropDoorbell(ExecutableDDLElement):
    """Drops the function; the trigger goes with its table."""

    def __init__(self, *, schema: str | None, name: str) -> None:
        self.schema = schema
        self.name = name


@compiles(CreateDoorbell)
def _nothing(_element: CreateDoorbell, _compiler: DDLCompiler, **_: Any) -> str:
    # So that one migration script serves every database.
    return "SELECT 1"


@compiles(CreateDoorbell, "postgresql")
def _create(element: CreateDoorbell, _compiler: DDLCompiler, **_: Any) -> str:
    name, relays = quoting.quote(element.name), quoting.quote(element.relays.name)
    # Tables without a schema are where the search path of this moment puts them; that of a writer may differ. The
    # trigger is created only where it is missing, since that waits for every open transaction that has written rows.
    return f"""DO $install$
DECLARE
    outbox CONSTANT regclass := {_literal(quoting.format_table(element.outbox))};
    home CONSTANT text := (
        SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = outbox);
BEGIN
    EXECUTE 'CREATE OR REPLACE FUNCTION ' || home || {_literal(f".{name}() RETURNS trigger LANGUAGE plpgsql")}
        || ' SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $ring$
    BEGIN
        IF EXISTS (SELECT FROM ' || home || {_literal(f".{relays}")}
        || ' WHERE idle = 1 AND expires_at > clock_timestamp()) THEN
            PERFORM pg_notify({_inner(element.channel)}, {_inner("")});
        END IF;
        RETURN NULL;
    END
    $ring$';
    EXECUTE 'REVOKE ALL ON FUNCTION ' || home || {_literal(f".{name}() FROM PUBLIC")};
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = outbox AND tgname = {_literal(element.name)}) THEN
        EXECUTE {_literal(f"CREATE TRIGGER {name} AFTER INSERT ON ")} || outbox
            || ' FOR EACH STATEMENT EXECUTE FUNCTION ' || home || {_literal(f".{name}()")};
    END IF;
END
$install$"""  # noqa: S608 - names of our own metadata, quoted


@compiles(DropDoorbell, "postgresql")
def _drop(element: DropDoorbell, _compiler: DDLCompiler, **_: Any) -> str:
    name = quoting.quote(element.name)
    return f"DROP FUNCTION IF EXISTS {f'{quoting.quote_schema(element.schema)}.' if element.schema else ''}{name}()"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _inner(value: str) -> str:
    """A literal inside a literal."""
    return _literal(value).replace("'", "''")
