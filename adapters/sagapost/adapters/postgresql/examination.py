"""What can be wrong with a PostgreSQL server, as far as sagapost's tables suffer from it. Reads catalogues only.

What a role may not see of others (their transactions, without pg_monitor) is not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY, INTERVAL
from sqlalchemy.types import Text

from sagapost.core.databases.postgresql import quoting
from sagapost.core.findings import Diagnosis, Patience, Severity

__all__ = ["examine", "future_rows"]


def examine(connection: Connection, tables: Sequence[Table], *, patience: Patience | None = None) -> list[Diagnosis]:
    """Look at the server and at those of the tables that are there; return what is wrong.

    In the caller's transaction, in which no lock is waited for any longer than a second from then on.
    """
    allowed = patience if patience is not None else Patience()
    # For the rest of the transaction: whoever looks for what is locked must not wait for it.
    connection.execute(text("SET LOCAL lock_timeout = '1s'"))
    look = _Look(connection, tables, allowed)
    return [
        *_settings(look),
        *_transactions(look),
        *_server(look),
        *_relations(look),
        *_upkeep(look),
        *_rights(look),
        *_locks(look),
    ]


class _Look:
    """Asks one question after the other."""

    def __init__(self, connection: Connection, tables: Sequence[Table], patience: Patience) -> None:
        self._connection = connection
        self._names = [quoting.format_table(table) for table in tables]
        self.patience = patience
        (row,) = self.rows(
            "SELECT current_database() AS database, current_user AS role, pg_is_in_recovery() AS standby"
        )
        self.database = quoting.quote(row["database"])
        self.role = quoting.quote(row["role"])
        self.standby: bool = row["standby"]

    def rows(self, query: str, **values: Any) -> Sequence[Mapping[str, Any]]:
        """Return the rows of a query; `:tables` are the names of the tables, timedeltas are intervals."""
        statement = text(query)
        if ":tables" in query:
            statement = statement.bindparams(bindparam("tables", self._names, type_=ARRAY(Text)))
        for name, value in values.items():
            kind = INTERVAL() if isinstance(value, timedelta) else None
            statement = statement.bindparams(bindparam(name, value, type_=kind))
        return [dict(row) for row in self._connection.execute(statement).mappings()]


_OURS: Final = "(SELECT to_regclass(name) FROM unnest(:tables) name WHERE to_regclass(name) IS NOT NULL)"


# --- settings ---

_BAD_SETTINGS: Final[Mapping[str, tuple[frozenset[str], Severity, str]]] = {
    "default_transaction_isolation": (
        frozenset({"read committed", "read uncommitted"}),
        Severity.WARNING,
        "transactions of services fail with serialization errors beside a busy relay or consumer",
    ),
    "default_transaction_read_only": (frozenset({"off"}), Severity.ERROR, "nothing can be published or handled"),
    "synchronous_commit": (
        frozenset({"on", "remote_apply", "remote_write", "local"}),
        Severity.WARNING,
        "a crash of the server loses transactions that were committed, and the events in them",
    ),
    "autovacuum": (frozenset({"on"}), Severity.ERROR, "the tables grow with each event and are never cleaned"),
    "track_counts": (frozenset({"on"}), Severity.ERROR, "autovacuum cannot know what to clean"),
    "idle_session_timeout": (
        frozenset({"0"}),
        Severity.ADVICE,
        "the connection on which a relay waits for notifications is ended again and again",
    ),
}
"""Setting -> the values that are well, and what comes of any other."""


def _settings(look: _Look) -> Iterator[Diagnosis]:
    if look.standby:
        yield Diagnosis(
            severity=Severity.ERROR,
            code="standby",
            subject=look.database,
            evidence="this server is a standby and takes no writes",
            remedy="name the primary in SAGAPOST_DATABASE_URL, or all hosts and target_session_attrs=read-write",
        )
    # What a session of a service gets: the role's and the database's own setting, whatever ours were told.
    rows = look.rows(
        """
        SELECT s.name, coalesce(own.value, s.setting) AS value, own.by_role IS NOT NULL AS own, own.by_role
        FROM pg_settings s LEFT JOIN LATERAL (
            SELECT split_part(c.entry, '=', 2) AS value, d.setrole <> 0 AS by_role
            FROM pg_db_role_setting d, unnest(d.setconfig) AS c(entry)
            WHERE d.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
              AND d.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
              AND split_part(c.entry, '=', 1) = s.name
            ORDER BY d.setrole DESC, d.setdatabase DESC LIMIT 1) own ON true
        WHERE s.name = ANY (:names)""",
        names=list(_BAD_SETTINGS),
    )
    for row in rows:
        well, severity, consequence = _BAD_SETTINGS[row["name"]]
        if row["value"] in well:
            continue
        target = f"ROLE {look.role}" if row["by_role"] else f"DATABASE {look.database}"
        reset = f"ALTER {target} RESET {row['name']}"
        yield Diagnosis(
            severity=severity,
            code="setting",
            subject=row["name"],
            evidence=f"it is {row['value']!r} for this role and database: {consequence}",
            remedy=reset if row["own"] else f"ALTER SYSTEM RESET {row['name']}; SELECT pg_reload_conf()",
        )


# --- what holds back the horizon ---


def _transactions(look: _Look) -> Iterator[Diagnosis]:
    limit = look.patience.transaction
    for row in look.rows(
        """
        SELECT pid, usename, application_name, state, xact_start FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
          AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start < clock_timestamp() - :limit
        ORDER BY xact_start LIMIT 5""",
        limit=limit,
    ):
        yield Diagnosis(
            severity=Severity.WARNING,
            code="open-transaction",
            subject=f"process {row['pid']}",
            evidence=f"a transaction of {row['usename']} ({row['application_name'] or 'without a name'}) is open, "
            f"{row['state']}: nothing that was deleted since it began can be cleaned away",
            remedy=f"SELECT pg_terminate_backend({row['pid']})",
            since=row["xact_start"],
        )
    for row in look.rows(
        "SELECT gid, owner, prepared FROM pg_prepared_xacts "
        "WHERE database = current_database() AND prepared < clock_timestamp() - :limit ORDER BY prepared LIMIT 5",
        limit=limit,
    ):
        yield Diagnosis(
            severity=Severity.WARNING,
            code="prepared-transaction",
            subject=row["gid"],
            evidence=f"{row['owner']} has prepared it and never ended it: its locks stay, and nothing is cleaned",
            remedy=f"ROLLBACK PREPARED '{row['gid'].replace(chr(39), chr(39) * 2)}', or COMMIT PREPARED",
            since=row["prepared"],
        )
    for row in look.rows(
        "SELECT slot_name, slot_type, pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) AS kept "
        "FROM pg_replication_slots WHERE NOT active AND restart_lsn IS NOT NULL AND NOT pg_is_in_recovery() LIMIT 5"
    ):
        yield Diagnosis(
            severity=Severity.WARNING,
            code="replication-slot",
            subject=row["slot_name"],
            evidence=f"nobody reads this {row['slot_type']} slot: the server keeps {row['kept']} of its log for it, "
            "until the disk is full",
            remedy=f"SELECT pg_drop_replication_slot('{row['slot_name']}')",
        )


# --- the server ---


def _server(look: _Look) -> Iterator[Diagnosis]:
    (row,) = look.rows(
        """
        SELECT pg_notification_queue_usage() AS queue, current_setting('server_encoding') AS encoding,
               (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
               current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS room
        """
    )
    if row["queue"] > look.patience.notify_queue:
        yield Diagnosis(
            severity=Severity.WARNING if row["queue"] < 0.5 else Severity.ERROR,
            code="notify-queue",
            subject="pg_notify",
            evidence=f"{row['queue']:.3%} of the queue are in use: a session listens and does not read, "
            "in a transaction that stays open. From one half on no relay is woken; when it is full, commits fail",
            remedy="SELECT pid, state, xact_start FROM pg_stat_activity ORDER BY xact_start; "
            "SELECT pg_terminate_backend(pid) for the oldest",
        )
    if row["encoding"] != "UTF8":
        yield Diagnosis(
            severity=Severity.ERROR,
            code="encoding",
            subject=look.database,
            evidence=f"the database is in {row['encoding']}: text of events that it has no letters for is refused",
            remedy=f"dump and restore into CREATE DATABASE {look.database} ENCODING 'UTF8' TEMPLATE template0",
        )
    if row["connections"] > row["room"] * look.patience.connections:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="connections",
            subject="max_connections",
            evidence=f"{row['connections']} of {row['room']} connections are in use: the next process gets none",
            remedy="ALTER SYSTEM SET max_connections = ..., or fewer: SAGAPOST_CONSUMER_CONCURRENCY, a pooler",
        )


# --- the tables ---


def _relations(look: _Look) -> Iterator[Diagnosis]:
    for row in look.rows(
        f"""
        SELECT c.oid::regclass::text AS name, c.relkind::text AS kind, c.relpersistence::text AS persistence,
               c.relrowsecurity AS secured, row_security_active(c.oid) AS active, n.nspname AS home,
               coalesce('autovacuum_enabled=false' = ANY (c.reloptions), false) AS unclean,
               (SELECT string_agg(quote_ident(o.nspname), ', ')
                FROM pg_class t JOIN pg_namespace o ON o.oid = t.relnamespace
                WHERE t.relname = c.relname AND t.oid <> c.oid AND t.relkind IN ('r', 'p', 'v', 'f')
                  AND o.nspname = ANY (current_schemas(false))) AS others,
               (SELECT string_agg(quote_ident(t.tgname), ', ') FROM pg_trigger t
                WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgname NOT LIKE '%outbox_ring') AS triggers
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY {_OURS}"""
    ):
        yield from _relation(row)


def _relation(row: Mapping[str, Any]) -> Iterator[Diagnosis]:
    name = row["name"]

    def found(severity: Severity, code: str, evidence: str, remedy: str) -> Diagnosis:
        return Diagnosis(severity=severity, code=code, subject=name, evidence=evidence, remedy=remedy)

    if row["kind"] != "r":
        yield found(
            Severity.ERROR,
            "no-table",
            "it is no plain table (a view, a partitioned or a foreign table)",
            f"rename it, and run sagapost db upgrade: ALTER TABLE {name} RENAME TO ...",
        )
    if row["persistence"] == "u":
        yield found(
            Severity.ERROR,
            "unlogged",
            "it is UNLOGGED: a crash of the server empties it",
            f"ALTER TABLE {name} SET LOGGED",
        )
    if row["secured"]:
        hidden = "rows of it are hidden from this role" if row["active"] else "rows of it may be hidden from others"
        yield found(
            Severity.ERROR if row["active"] else Severity.WARNING,
            "row-level-security",
            f"row-level security is on: {hidden}, and nothing says so",
            f"ALTER TABLE {name} DISABLE ROW LEVEL SECURITY",
        )
    if row["others"]:
        yield found(
            Severity.WARNING,
            "search-path",
            f"there is another table of this name on the search path, in {row['others']}: which one is written and "
            f"which one is read depends on each session (here it is the one in {row['home']})",
            "set SAGAPOST_DATABASE_SCHEMA and OutboxTables(schema=...), or SAGAPOST_TABLE_PREFIX",
        )
    if row["unclean"]:
        yield found(
            Severity.WARNING,
            "autovacuum-off",
            "autovacuum is switched off for it",
            f"ALTER TABLE {name} RESET (autovacuum_enabled)",
        )
    if row["triggers"]:
        yield found(
            Severity.ADVICE,
            "foreign-trigger",
            f"it has triggers that are not sagapost's: {row['triggers']}. They run in every transaction that writes "
            "to it, and can fail it",
            f"look at them; DROP TRIGGER ... ON {name}",
        )


def _upkeep(look: _Look) -> Iterator[Diagnosis]:
    # The size as of the last vacuum: asking for that of now waits for whoever has locked the table.
    for row in look.rows(
        f"""
        SELECT c.oid::regclass::text AS name, coalesce(s.n_dead_tup, 0) AS dead, coalesce(s.n_live_tup, 0) AS living,
               c.relpages * current_setting('block_size')::bigint AS bytes, c.reltuples::bigint AS kept,
               pg_size_pretty(c.relpages * current_setting('block_size')::bigint) AS size,
               greatest(s.last_autovacuum, s.last_vacuum) AS cleaned
        FROM pg_class c LEFT JOIN pg_stat_user_tables s ON s.relid = c.oid WHERE c.oid = ANY {_OURS}"""
    ):
        if row["dead"] > look.patience.dead_rows and row["dead"] > 2 * row["living"]:
            yield Diagnosis(
                severity=Severity.WARNING,
                code="dead-rows",
                subject=row["name"],
                evidence=f"{row['dead']} dead rows beside {row['living']} living ones: autovacuum does not keep up, "
                "or a transaction holds it back",
                remedy=f"VACUUM {row['name']}; ALTER TABLE {row['name']} SET (autovacuum_vacuum_scale_factor = 0.02)",
                since=row["cleaned"],
            )
        # A row of ours takes a few hundred bytes; this leaves out only what is empty for certain.
        elif row["bytes"] > look.patience.empty_bytes and 0 <= row["kept"] * 1000 < row["bytes"] / 10:
            yield Diagnosis(
                severity=Severity.ADVICE,
                code="bloat",
                subject=row["name"],
                evidence=f"its file has {row['size']} for {row['kept']} rows: every scan reads all of it",
                remedy=f"VACUUM FULL {row['name']} (nobody can write meanwhile), or pg_repack",
            )


def _rights(look: _Look) -> Iterator[Diagnosis]:
    for row in look.rows(
        f"""
        SELECT c.oid::regclass::text AS name, string_agg(r.name, ', ' ORDER BY r.name) AS missing
        FROM pg_class c CROSS JOIN unnest(ARRAY['DELETE', 'INSERT', 'SELECT', 'UPDATE']) AS r(name)
        WHERE c.oid = ANY {_OURS} AND NOT has_table_privilege(c.oid, r.name) GROUP BY c.oid"""
    ):
        yield Diagnosis(
            severity=Severity.ERROR,
            code="privilege",
            subject=row["name"],
            evidence=f"this role has no {row['missing']} on it, which relays and consumers need",
            remedy=f"GRANT {row['missing']} ON {row['name']} TO {look.role}",
        )


def _locks(look: _Look) -> Iterator[Diagnosis]:
    for row in look.rows(
        f"""
        SELECT l.relation::regclass::text AS name, l.mode, min(l.waitstart) AS since, count(*) AS waiting,
               array_agg(DISTINCT b.pid) AS blockers
        FROM pg_locks l CROSS JOIN LATERAL unnest(pg_blocking_pids(l.pid)) AS b(pid)
        WHERE NOT l.granted AND l.relation = ANY {_OURS} AND l.waitstart < clock_timestamp() - :limit
        GROUP BY l.relation, l.mode""",
        limit=look.patience.lock,
    ):
        yield Diagnosis(
            severity=Severity.ERROR,
            code="lock",
            subject=row["name"],
            evidence=f"{row['waiting']} sessions wait for {row['mode']} behind process "
            f"{', '.join(map(str, row['blockers']))}",
            remedy=f"SELECT pg_terminate_backend({row['blockers'][0]})",
            since=row["since"],
        )
    for row in look.rows(
        f"""
        SELECT a.pid, a.state_change FROM pg_stat_activity a
        WHERE a.datname = current_database() AND a.state = 'active' AND a.wait_event = 'ClientRead'
          AND a.state_change < clock_timestamp() - :limit
          AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.relation = ANY {_OURS})
        ORDER BY a.state_change LIMIT 5""",
        limit=look.patience.transaction,
    ):
        yield Diagnosis(
            severity=Severity.WARNING,
            code="stranded",
            subject=f"process {row['pid']}",
            evidence="its client was lost in the middle of a statement: no time limit of the server ends it, and "
            "the messages that it was handling wait for its dedup keys",
            remedy=f"SELECT pg_terminate_backend({row['pid']})",
            since=row["state_change"],
        )


def future_rows(connection: Connection, outbox: Table) -> Iterator[Diagnosis]:
    """Look for rows whose transaction ids are of another server; reads the table."""
    found = text(
        f"SELECT count(*) FROM (SELECT FROM {quoting.format_table(outbox)} "
        "WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) ORDER BY xid LIMIT 10000) future"
    )
    count = connection.execute(found).scalar_one()
    if count:
        yield Diagnosis(
            severity=Severity.WARNING,
            code="future-rows",
            subject=outbox.name,
            evidence=f"{count} rows were written by transactions that have not begun here: the table was "
            "restored or replicated from another server",
            remedy="restart the relays of the release that runs: each stamps such rows anew when it starts",
        )
