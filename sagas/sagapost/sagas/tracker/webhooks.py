"""Telling somebody by HTTP: at least once, under one idempotency key, with growing waits between tries."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import timedelta
from typing import Any

import anyio
import msgspec
from sqlalchemy import Connection, Row, select, update

from sagapost.core.backoff import Backoff
from sagapost.core.observer import Observer
from sagapost.sagas.tracker import observations as obs
from sagapost.sagas.tracker.tracker import Tracker

__all__ = ["Webhooks"]

_TIMEOUT = 10.0
_CLAIM = timedelta(minutes=1)
"""How long a try may take before somebody else may try: well over the timeout."""
_ATTEMPTS = 20
"""With the waits below: about a day."""
_WAITS = Backoff(base=timedelta(seconds=5), cap=timedelta(hours=2))


class Webhooks:
    """Sends what `tracker_actions` has pending."""

    def __init__(self, tracker: Tracker, *, observer: Observer) -> None:
        self._tracker = tracker
        self._observer = observer

    async def send_due(self) -> int:
        """Send the webhook that has been due the longest; return 1 if there was one."""
        claimed = await self._tracker.database.run(self._claim)
        if claimed is None:
            return 0
        saga, rule, attempts = claimed.saga, claimed.rule, claimed.attempts + 1
        row = await self._tracker.row(saga)
        body = {
            "saga": saga,
            "rule": rule,
            "reason": claimed.reason,
            "state": row.state.value if row is not None else None,
            "keys": dict(row.keys) if row is not None else {},
        }
        error = await _posted(claimed.url, claimed.key, msgspec.json.encode(body))
        wait = None if error is None or attempts >= _ATTEMPTS else _WAITS.delay(attempts)
        await self._tracker.database.run(lambda connection: self._conclude(connection, claimed, error, wait))
        if error is None:
            self._observer.notify(obs.WebhookSent(saga, rule, attempts))
        else:
            retry_in = wait.total_seconds() if wait is not None else None
            self._observer.notify(obs.WebhookFailed(saga, rule, attempts, error, retry_in))
        return 1

    def _claim(self, connection: Connection) -> Row[Any] | None:
        self._tracker.take_turn(connection)
        table, now = self._tracker.tables.actions, self._tracker.clock.now()
        due = select(table).where(table.c.state == "pending", table.c.due_at <= now).order_by(table.c.due_at).limit(1)
        row = connection.execute(due.with_for_update(skip_locked=True)).one_or_none()
        if row is not None:
            connection.execute(
                update(table)
                .where(table.c.saga == row.saga, table.c.rule == row.rule)
                .values(attempts=row.attempts + 1, due_at=now + _CLAIM)
            )
        return row

    def _conclude(self, connection: Connection, claimed: Row[Any], error: str | None, wait: timedelta | None) -> None:
        table = self._tracker.tables.actions
        state = "done" if error is None else "pending" if wait is not None else "failed"
        connection.execute(
            update(table)
            .where(table.c.saga == claimed.saga, table.c.rule == claimed.rule, table.c.state == "pending")
            .values(
                state=state,
                last_error=error,
                due_at=self._tracker.clock.now() + wait if wait is not None else None,
            )
        )


async def _posted(url: str, key: str, body: bytes) -> str | None:
    """Return what went wrong; within a bound, also where a server sends its answer byte by byte."""
    with anyio.move_on_after(2 * _TIMEOUT):
        # A thread, since the standard library's client blocks; one that is left alone ends with its own timeout.
        return await anyio.to_thread.run_sync(_post, url, key, body, abandon_on_cancel=True)
    return "TimeoutError"


def _post(url: str, key: str, body: bytes) -> str | None:
    """Return what went wrong, without the URL: many hold a token."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    try:
        request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - `Notify` takes http(s) alone
        with urllib.request.urlopen(request, timeout=_TIMEOUT):  # noqa: S310 - as above
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}"
    except Exception as error:
        # No connection, no HTTP in answer, a host name that is none, a redirect to nowhere: named by its class alone.
        return type(error).__name__
