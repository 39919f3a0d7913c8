"""The writer's side of the doorbell: the statement trigger that wakes a sleeping relay (docs/adr/0008, 0021).

NOTIFY takes a lock that all notifying commits of the cluster share, so it must not run on every insert: the trigger
rings only while a relay sleeps, which it says by an advisory lock. It fires once per statement, for every way of
writing (ORM, Core, asyncpg, hand-written SQL). Without it the outbox works all the same, at the relay's poll interval.
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

__all__ = ["ONE_PHASE", "SILENCE", "CreateDoorbell", "DropDoorbell"]

ONE_PHASE = "/* sagapost: commits in one phase */"
"""Stands behind INSERT in every statement of ours: the trigger then knows that nobody will PREPARE the transaction."""

SILENCE = "SET LOCAL sagapost.doorbell = off"
"""For a transaction that is going to be prepared all the same."""

# Of this release and for these tables: their schema may have been renamed since.
_PRESENT = text(
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid "
    "WHERE t.tgrelid = to_regclass(:outbox) AND t.tgname = :name AND t.tgenabled <> 'D' AND NOT p.prosecdef "
    "AND p.prosrc = :body)"
)
_TWO_PHASE = text(
    "SELECT current_setting('max_prepared_transactions')::int > 0 "
    "AND coalesce(nullif(current_setting('sagapost.doorbell', true), ''), 'unset') NOT IN ('on', 'off')"
)


class CreateDoorbell(Supplement):
    """Creates the trigger and its function, or brings them up to date. Nothing at all where there is no NOTIFY.

    The function reads no table, so a writer needs no more than INSERT on the outbox, and nothing that relays write
    slows a writer down. It is called inside any INSERT, by any role, under any `search_path`: hence a path of its own,
    that holds nothing a user can write to.

    :param channel: of NOTIFY.
    :param lock: the advisory lock that a sleeping relay holds, shared with other relays.
    """

    what = "the trigger that wakes a sleeping relay (as this release makes it)"

    def __init__(self, *, outbox: Table, name: str, channel: str, lock: int) -> None:
        self.outbox = outbox
        self.name = name
        self.channel = channel
        self.lock = lock

    def present(self, connection: Connection) -> bool:
        """Return whether there is nothing to create."""
        if not kit_of(connection).notifies:
            return True
        where = {"outbox": quoting.format_table(self.outbox), "name": self.name, "body": _body(self)}
        return bool(connection.execute(_PRESENT, where).scalar_one())

    def remark(self, connection: Connection) -> str | None:
        """See `Supplement.remark`: whose rows do not ring, where transactions may be prepared."""
        if not kit_of(connection).notifies or not connection.execute(_TWO_PHASE).scalar_one():
            return None
        return (
            "max_prepared_transactions is above 0, so only Outbox.publish wakes a sleeping relay; what plain SQL "
            "writes waits for its poll interval. If no writer in plain SQL uses PREPARE TRANSACTION: "
            "ALTER DATABASE ... SET sagapost.doorbell = on"
        )


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
    name = quoting.quote(element.name)
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
        || ' SECURITY INVOKER SET search_path = pg_catalog, pg_temp AS $ring$'
        || {_literal(_body(element))} || '$ring$';
    EXECUTE 'REVOKE ALL ON FUNCTION ' || home || {_literal(f".{name}() FROM PUBLIC")};
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = outbox AND tgname = {_literal(element.name)}) THEN
        EXECUTE {_literal(f"CREATE TRIGGER {name} AFTER INSERT ON ")} || outbox
            || ' FOR EACH STATEMENT EXECUTE FUNCTION ' || home || {_literal(f".{name}()")};
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_trigger
                  WHERE tgrelid = outbox AND tgname = {_literal(element.name)} AND tgenabled = 'D') THEN
        EXECUTE 'ALTER TABLE ' || outbox || {_literal(f" ENABLE TRIGGER {name}")};
    END IF;
END
$install$"""  # noqa: S608 - names of our own metadata, quoted


def _body(element: CreateDoorbell) -> str:
    """Return what the function does.

    Whether a relay sleeps is asked by trying to get its lock, and giving it back in the same expression, within which
    a statement cannot be cancelled. Another writer may be asking at this very moment, so a no is asked for twice
    more: a NOTIFY for nothing is cheaper than to wait.

    A hint must not cost the writer its transaction. PREPARE TRANSACTION refuses a transaction that has notified, so
    where transactions can be prepared only statements ring that are known to be committed in one phase, or all of them
    by the choice of an operator. COMMIT refuses a notification that the queue has no room for, so a queue that is half
    full is left alone. Whatever else fails (no room in the table of locks, rights taken away) loses the ring.
    """
    lock = element.lock
    asleep = f"(CASE WHEN pg_try_advisory_lock({lock}) THEN NOT pg_advisory_unlock({lock}) ELSE true END)"
    return f"""
BEGIN
    IF {asleep}
        AND {asleep}
        AND {asleep}
        AND (CASE coalesce(current_setting('sagapost.doorbell', true), '')
            WHEN 'on' THEN true
            WHEN 'off' THEN false
            ELSE current_setting('max_prepared_transactions') = '0'
                OR strpos(current_query(), {_literal(f"INSERT {ONE_PHASE} INTO")}) > 0
        END)
        AND pg_notification_queue_usage() < 0.5
    THEN
        PERFORM pg_notify({_literal(element.channel)}, '');
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
"""


@compiles(DropDoorbell, "postgresql")
def _drop(element: DropDoorbell, _compiler: DDLCompiler, **_: Any) -> str:
    name = quoting.quote(element.name)
    return f"DROP FUNCTION IF EXISTS {f'{quoting.quote_schema(element.schema)}.' if element.schema else ''}{name}()"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
