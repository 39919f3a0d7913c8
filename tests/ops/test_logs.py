"""Log lines carry the ids of the saga, and have the form that their reader needs."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread
import pytest

from sagapost.core.context import SagaContext, bind
from sagapost.core.envelope import Event
from sagapost.ops.log_format import HumanFormatter, JsonFormatter
from sagapost.ops.logs import SagaContextFilter, configure_logging
from sagapost.ops.registry import brokers

SAGA = SagaContext(correlationid="saga-1", causationid="event-1")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def one_line(stream: io.StringIO) -> dict[str, Any]:
    """Return the single JSON line that was written."""
    (line,) = stream.getvalue().splitlines()
    parsed: dict[str, Any] = json.loads(line)
    return parsed


@pytest.fixture
def stream() -> io.StringIO:
    """Where JSON lines are written."""
    written = io.StringIO()
    configure_logging(format="json", stream=written)
    return written


def test_a_json_line_carries_time_level_logger_and_message(stream: io.StringIO) -> None:
    """The four fields every collector needs; the time in UTC with milliseconds."""
    before = datetime.now(UTC)
    logging.getLogger("orders.api").warning("order %s is late", 7)
    line = one_line(stream)
    assert {key: line[key] for key in ("level", "logger", "message")} == {
        "level": "WARNING",
        "logger": "orders.api",
        "message": "order 7 is late",
    }
    time = datetime.fromisoformat(line["time"])
    assert line["time"].endswith("Z")
    assert before - timedelta(milliseconds=1) <= time <= datetime.now(UTC)


def test_every_record_inside_a_saga_carries_both_ids(stream: io.StringIO) -> None:
    """Any logger, the user's and ours, needs no argument for it; outside a saga the fields are absent."""
    log = logging.getLogger("orders.stock")
    with bind(SAGA):
        log.info("inside")
    log.info("outside")
    inside, outside = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (inside["correlationid"], inside["event_id"]) == ("saga-1", "event-1")
    assert "correlationid" not in outside
    assert "event_id" not in outside


async def test_ids_follow_tasks_and_worker_threads(stream: io.StringIO) -> None:
    """Synchronous handlers run in threads and start tasks of their own; the ids are on their lines too."""
    log = logging.getLogger("orders.stock")

    async def task() -> None:
        log.info("task")

    with bind(SAGA):
        await anyio.to_thread.run_sync(log.info, "thread")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(task)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {line["message"]: line["correlationid"] for line in lines} == {"thread": "saga-1", "task": "saga-1"}


def test_ids_given_by_the_caller_win(stream: io.StringIO) -> None:
    """A relay logs about an event of some other saga than the current one."""
    with bind(SAGA):
        logging.getLogger("relay").info("refused", extra={"event_id": "event-9"})
    line = one_line(stream)
    assert (line["event_id"], line["correlationid"]) == ("event-9", "saga-1")


def test_the_filter_works_on_a_handler_of_ones_own() -> None:
    """A service that configures logging itself gets the ids by adding the filter."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(correlationid)s %(event_id)s %(message)s"))
    handler.addFilter(SagaContextFilter())
    logger = logging.getLogger("own")
    logger.addHandler(handler)
    try:
        with bind(SAGA):
            logger.warning("hello")
        logger.warning("bye")
    finally:
        logger.removeHandler(handler)
    assert written.getvalue().splitlines() == ["saga-1 event-1 hello", "None None bye"]


def test_extras_become_fields_of_their_own(stream: io.StringIO) -> None:
    """Types that JSON lacks are written in their usual text; objects only by their class, not by their repr."""
    event = Event(id="1", source="urn:x", type="t", time=datetime.now(UTC), data=b"payload-with-secrets")
    logging.getLogger("x").info(
        "extras",
        extra={
            "count": 3,
            "ratio": float("nan"),
            "when": datetime(2026, 11, 23, tzinfo=UTC),
            "took": timedelta(milliseconds=1500),
            "uuid": UUID(int=1),
            "nested": {"keys": {"b", "a"}, 1: [None, True]},
            "event": event,
            "time": "not ours",
            "failure": ValueError("bad"),
        },
    )
    line = one_line(stream)
    assert line["count"] == 3
    assert line["ratio"] == "nan"
    assert line["when"] == "2026-11-23T00:00:00+00:00"
    assert line["took"] == 1.5
    assert line["uuid"] == "00000000-0000-0000-0000-000000000001"
    assert line["nested"] == {"keys": ["a", "b"], "1": [None, True]}
    assert line["event"] == "<sagapost.core.envelope.Event>"
    assert line["extra_time"] == "not ours"
    assert line["failure"] == "ValueError: bad"
    assert "payload" not in stream.getvalue()


@pytest.mark.parametrize(
    "text",
    ["two\nlines", "\x1b[31mred", "\ud800 lone", "\u2028 separator", '"quoted" \\'],
    ids=["line break", "escape", "lone surrogate", "line separator", "quotes"],
)
def test_no_text_breaks_a_json_line(text: str) -> None:
    """Whatever a message holds, it stays one line of ASCII that reads back as it was."""
    # Not through a logger: pytest would keep the record, and cannot send a lone surrogate from a test process.
    line = JsonFormatter(str).format(logging.makeLogRecord({"msg": "%s", "args": (text,)}))
    assert line.splitlines() == [line]
    assert json.loads(line)["message"] == text
    assert line.isascii()


def test_arguments_that_do_not_fit_lose_no_line() -> None:
    """A wrong format string in somebody's code is reported in the line itself."""
    line = JsonFormatter(str).format(logging.makeLogRecord({"msg": "%d apples", "args": ("many",)}))
    assert json.loads(line)["message"].startswith("%d apples (arguments do not fit")


def test_an_exception_is_logged_with_its_type_and_traceback(stream: io.StringIO) -> None:
    """One line, with fields to search by."""
    try:
        raise LookupError("no such order")
    except LookupError:
        logging.getLogger("x").exception("failed")
    line = one_line(stream)
    assert line["error"] == "builtins.LookupError"
    assert line["traceback"].startswith("Traceback")
    assert line["traceback"].endswith("LookupError: no such order")


def test_warnings_become_log_lines(stream: io.StringIO) -> None:
    """A deprecation does not write raw text into a stream of JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging(format="json", stream=stream)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert one_line(stream)["logger"] == "py.warnings"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("DEBUG", ["aiormq trouble", "sqlalchemy trouble", "detail"]),
        ("INFO", ["sqlalchemy trouble"]),
        ("ERROR", []),
    ],
)
def test_the_level_holds_and_drivers_are_kept_quiet(level: str, seen: list[str]) -> None:
    """Their chatter says nothing to an operator; aiormq's errors come as exceptions, and so only once."""
    written = io.StringIO()
    drivers = brokers.find("amqp").loggers
    configure_logging(format="json", level=level, stream=written, loggers=drivers)
    for driver in ("aiormq", "sqlalchemy"):
        logging.getLogger(f"{driver}.pool").info("chatter")
        logging.getLogger(f"{driver}.pool").warning("%s trouble", driver)
    logging.getLogger("sagapost.relay").debug("detail")
    assert [json.loads(line)["message"] for line in written.getvalue().splitlines()] == seen


def test_configuring_again_replaces_the_handler(stream: io.StringIO) -> None:
    """No line is written twice, and handlers of others stay."""
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    try:
        again = io.StringIO()
        configure_logging(format="json", stream=again)
        logging.getLogger("x").info("once")
        assert stream.getvalue() == ""
        one_line(again)
        assert other in logging.getLogger().handlers
    finally:
        logging.getLogger().removeHandler(other)


# --- for people ---


def human(text: str, extra: Mapping[str, object] | None = None, *, colour: bool = False) -> str:
    """Return a line as a person reads it."""
    record = logging.makeLogRecord(
        {"name": "sagapost.ops.daemon", "levelno": 20, "levelname": "INFO", "msg": text, **(extra or {})}
    )
    return HumanFormatter(str, colour=colour).format(record)


def test_a_human_line_is_short_and_ends_with_the_ids() -> None:
    """Time of day, level, logger without the common part, message, extras, ids."""
    line = human("started", {"attempt": 2, "correlationid": "saga-1", "event_id": "event-1"})
    assert line[8:] == " INFO     daemon     started  attempt=2  [saga saga-1, event event-1]"


def test_escape_sequences_in_a_message_do_not_reach_the_terminal() -> None:
    """Text that came from a message cannot clear the screen or forge a colour."""
    assert "\x1b" not in human("evil \x1b[2J", {"key": "\x1b]0;x\x07"})
    assert "\\x1b[2J" in human("evil \x1b[2J")


@pytest.mark.parametrize(
    ("format_", "terminal", "is_json", "coloured"),
    [
        ("auto", False, True, False),
        ("auto", True, False, True),
        ("human", False, False, False),
        ("human", True, False, True),
        ("json", True, True, False),
    ],
)
def test_the_form_follows_the_stream_unless_it_is_set(
    monkeypatch: pytest.MonkeyPatch, format_: Any, terminal: bool, is_json: bool, coloured: bool
) -> None:
    """Human on a terminal and JSON otherwise; colour only on a terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = Terminal() if terminal else io.StringIO()
    configure_logging(format=format_, stream=written)
    logging.getLogger("x").info("hello")
    assert written.getvalue().startswith("{") is is_json
    assert ("\x1b[" in written.getvalue()) is coloured


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As no-color.org asks."""
    monkeypatch.setenv("NO_COLOR", "1")
    written = Terminal()
    configure_logging(stream=written)
    logging.getLogger("x").info("hello")
    assert "\x1b" not in written.getvalue()


PROGRAM = "import logging; from sagapost.ops.logs import configure_logging; configure_logging(); logging.warning('hi')"


def test_a_real_terminal_gets_human_lines_and_a_pipe_gets_json() -> None:
    """The same program, once with standard error on a pseudo-terminal and once on a pipe."""
    parent, child = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stderr=child, env={**os.environ, "NO_COLOR": "1"}
        ) as on:
            assert on.wait(30) == 0
        seen = os.read(parent, 10_000).decode()
    finally:
        os.close(child)
        os.close(parent)
    assert seen.rstrip().endswith("WARNING  root       hi")
    piped = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(piped.stderr)["message"] == "hi"
    assert JsonFormatter(str).format(logging.makeLogRecord({"msg": "x"})).startswith("{")
