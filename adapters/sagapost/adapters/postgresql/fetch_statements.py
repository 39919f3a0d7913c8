"""The statements of the fetch, each with the plan it must get (`tests/adapters/postgresql/test_fetch_plans.py`)."""

from __future__ import annotations

from sqlalchemy import Table

from sagapost.adapters.postgresql.rows import ROW_COLUMNS, qualified
from sagapost.core.databases import PostgreSQL
from sagapost.outbox.reading import RECORD

__all__ = ["FetchStatements"]


def _header(**values: str) -> str:
    """Return the SELECT list of the row with position 0, which says something of the whole page."""
    given = {"position": "0", "slot": "0", "time": "pg_postmaster_start_time()", "attempts": "0", **values}
    return ", ".join(f"{given.get(name, 'NULL')} AS {name}" for name in RECORD)


def _owned(parameter: int) -> str:
    """Return the condition on the relay's partitions: their count is this parameter, they are the next."""
    return f"AND slot % ${parameter}::int = ANY(${parameter + 1}::int[])"


def _delta(table: str, owned: str = "") -> str:
    """What became visible since the last fetch."""
    # One statement, so that its own snapshot is S' and what it sees is exactly what is visible in S'.
    # Stragglers and newcomers are read along the index on (xid, position) as two separate scans: an OR with
    # ORDER BY position LIMIT makes the planner walk the primary key over dead entries (0.7 ms became 29 ms
    # after 200,000 rows under an open transaction). The ORDER BY in each scan keeps the planner on that
    # index whatever the statistics say. A straggler's id is a range for the same reason: of an equality the
    # planner concludes that the order of positions is enough, which the primary key has too (110 ms after an
    # ANALYZE that found few and large transactions).
    # The row with position 0 is the header: the snapshot, which server answers, and whether the delta was over
    # the limits, in which case no rows are sent and the generation is paged.
    return f"""
        WITH delta AS MATERIALIZED (
            SELECT r.* FROM unnest($1::xid8[]) AS straggler(id), LATERAL (
                SELECT {ROW_COLUMNS} FROM {table}
                WHERE xid >= straggler.id AND xid <= straggler.id {owned}
                ORDER BY xid, position LIMIT $3::int + 1
            ) r
            UNION ALL
            SELECT r.* FROM (
                SELECT {ROW_COLUMNS} FROM {table} WHERE xid >= $2::xid8 {owned}
                ORDER BY xid, position LIMIT $3::int + 1
            ) r
        ), total AS MATERIALIZED (
            SELECT count(*) <= $3::int AND coalesce(sum(octet_length(data)), 0) <= $4::int8 AS fits FROM delta
        )
        SELECT {_header(topic="pg_current_snapshot()::text", retry_in="fits::int::float8")}
        FROM total
        UNION ALL
        SELECT delta.* FROM delta, total WHERE fits
        ORDER BY position
    """


def _page(table: str, owned: str = "") -> str:
    """A stretch of a generation that is too large for one answer."""
    # Along the primary key: from the next row there is, a stretch of so many positions, of which what is
    # wanted. The stretch bounds the cost whatever the plan: asked for "the next 1,000 that match", the planner
    # guesses how rare they are, and when it thinks them rare it sorts all the rest of the table for every
    # page (200 to 390 ms at 200,000 rows). Dead entries before the next row are passed once.
    # Rows are cut by size inside the database (octet_length reads a toasted value's header, not the value),
    # so a page of 1 MiB rows never reaches this process whole.
    # The row with position 0 is the header: where the stretch begins, nothing where no row is left.
    return f"""
        WITH next AS MATERIALIZED (
            SELECT position AS first FROM {table} WHERE position > $1::int8 ORDER BY position LIMIT 1
        )
        SELECT {_header(topic="(SELECT first FROM next)::text", retry_in="0")}
        UNION ALL
        SELECT {", ".join(f"p.{name}" for name in RECORD)}
        FROM (
            SELECT c.*, sum(octet_length(c.data)) OVER (ORDER BY c.position) - octet_length(c.data) AS before
            FROM (
                SELECT {ROW_COLUMNS} FROM {table}
                WHERE position >= (SELECT first FROM next)
                  AND position < (SELECT first FROM next) + $8::int8 {owned}
                  AND pg_visible_in_snapshot(xid, $2::pg_snapshot)
                  AND (NOT pg_visible_in_snapshot(xid, $3::pg_snapshot)
                       OR EXISTS (SELECT FROM unnest($6::text[], $7::int8[]) AS replay(key, above)
                                  WHERE partitionkey = replay.key AND position > replay.above))
                ORDER BY position LIMIT $4::int
            ) c
        ) p
        WHERE p.before < $5::int8
        ORDER BY position
    """


def _low(table: str) -> str:
    """Where a generation that must be paged begins, whoever its rows belong to."""
    # Of a plain min(position) the planner makes a walk along the primary key, up to the first row of the generation
    # (130 ms past 200,000 rows); an expression has no such index, so the entries of the generation are read, and
    # nothing else.
    return f"""
        SELECT min(first.position) FROM (
            SELECT r.position FROM unnest($1::xid8[]) AS straggler(id), LATERAL (
                SELECT position FROM {table} WHERE xid >= straggler.id AND xid <= straggler.id
                ORDER BY xid, position LIMIT 1
            ) r
            UNION ALL
            SELECT min(position + 0) FROM {table} WHERE xid >= $2::xid8
        ) first
    """


class FetchStatements:
    """The reader's SQL, for one outbox table. `owned` variants filter on the relay's partitions."""

    def __init__(self, outbox: Table, dead: Table) -> None:
        table = qualified(outbox)
        self.delta_all, self.delta_owned = _delta(table), _delta(table, _owned(5))
        self.page_all, self.page_owned = _page(table), _page(table, _owned(9))
        self.low = _low(table)
        self.snapshot = "SELECT pg_current_snapshot(), pg_postmaster_start_time()"
        self.revisit = f"SELECT {ROW_COLUMNS} FROM {table} WHERE position = ANY($1::int8[]) ORDER BY position"
        # Of the rows that were committed when the mark was made, those that are still there: few, unless the relay is
        # behind. The bound on positions keeps it from reading on through all that came after the mark.
        self.mark = f"SELECT pg_current_snapshot(), coalesce(max(position), 0) FROM {table}"
        self.left = f"""
            SELECT position, partitionkey FROM {table}
            WHERE position > $1::int8 AND position <= $2::int8 AND slot % $5::int = ANY($6::int[])
              AND (pg_visible_in_snapshot(xid, $3::pg_snapshot) OR xid >= pg_snapshot_xmax(pg_current_snapshot()))
            ORDER BY position LIMIT $4::int"""
        self.advance = PostgreSQL().advance_sequence(outbox, dead)
        # After a dump is restored into another cluster, transaction ids restart: rows then carry ids from the future,
        # which no snapshot will see for a long time. They are visible to us, so they are committed: stamp them anew.
        # Costs one index probe when there are none.
        self.restamp = (
            f"UPDATE {table} SET xid = pg_current_xact_id() "
            "WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()) AND xid <> pg_current_xact_id()"
        )
