"""Log lines: short ones for a person, JSON lines for a collector. Both pass a `Redactor`."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from typing import Final
from uuid import UUID

__all__ = ["HumanFormatter", "JsonFormatter", "printable"]

_BUILT_IN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_IDS: Final = {"correlationid": "saga", "event_id": "event"}
_DEEPEST: Final = 6

_Redact = Callable[[str], str]


def _extras(record: logging.LogRecord) -> dict[str, object]:
    """Return what the caller put into `extra`, the ids first; absent ids are left out."""
    given = {name: value for name, value in vars(record).items() if name not in _BUILT_IN}
    ids = {name: given.pop(name) for name in _IDS if name in given}
    return {name: value for name, value in ids.items() if value is not None} | given


def _plain(value: object, redact: _Redact, depth: int = 0) -> object:
    """Return `value` as JSON has it; objects JSON does not know are named by their class, not shown.

    An object's repr may hold a payload or a secret, so only types whose text is known to be harmless are shown.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if value == value and abs(value) != float("inf") else str(value)
        case str():
            return redact(value)
        case datetime() | date():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID():
            return str(value)
        case Enum():
            return value.name
        case BaseException():
            return redact(f"{type(value).__name__}: {value}")
        case _ if depth >= _DEEPEST:
            return "..."
        case Mapping():
            return {redact(str(key)): _plain(item, redact, depth + 1) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, redact, depth + 1) for item in value]
        case set() | frozenset():
            return sorted((_plain(item, redact, depth + 1) for item in value), key=str)
        case _:
            return f"<{type(value).__module__}.{type(value).__qualname__}>"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError) as error:
        # A wrong format string in somebody's code must not lose the line.
        return f"{record.msg} (arguments do not fit: {error})"


def _traceback(record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[1] is not None:
        return "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    return record.exc_text or None


class JsonFormatter(logging.Formatter):
    """One JSON object per line.

    `time` (RFC 3339, UTC, milliseconds), `level`, `logger`, `message`; `correlationid` and `event_id` where the code
    runs for a saga; `error` and `traceback` where an exception is logged; and whatever was passed as `extra`.
    """

    def __init__(self, redact: _Redact) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        redact = self._redact
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, object] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": redact(_message(record)),
        }
        for name, value in _extras(record).items():
            # An extra that is called like one of ours does not replace it.
            line[name if name not in line else f"extra_{name}"] = _plain(value, redact)
        trace = _traceback(record)
        if trace is not None:
            if record.exc_info and record.exc_info[0] is not None:
                line["error"] = f"{record.exc_info[0].__module__}.{record.exc_info[0].__qualname__}"
            line["traceback"] = redact(trace)
        if record.stack_info:
            line["stack"] = redact(record.stack_info)
        # ASCII only: no encoding of the stream can break a line, and lone surrogates stay readable.
        return json.dumps(line, ensure_ascii=True)


# A terminal obeys escape sequences; text from a message must not be able to write them.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return text with control characters spelt out, but for line ends and tabs."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


_COLOURS: Final[Mapping[int, str]] = {
    logging.DEBUG: "\x1b[2m",
    logging.INFO: "\x1b[32m",
    logging.WARNING: "\x1b[33m",
    logging.ERROR: "\x1b[31m",
    logging.CRITICAL: "\x1b[1;31m",
}
_DIM: Final = "\x1b[2m"
_RESET: Final = "\x1b[0m"


class HumanFormatter(logging.Formatter):
    """``12:30:01 INFO     relay   42 events published  rate=120/s  [saga 0190...]``, with colour if wished."""

    def __init__(self, redact: _Redact, *, colour: bool) -> None:
        super().__init__()
        self._redact = redact
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and its traceback on the lines below."""
        redact = self._redact
        extras = _extras(record)
        ids = [f"{label} {extras.pop(name)}" for name, label in _IDS.items() if name in extras]
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        # sagapost's own loggers go without the common part of their name.
        name = record.name.removeprefix("sagapost.").removeprefix("ops.")
        level = f"{record.levelname:<8}"
        tail = "".join(f"  {key}={printable(str(_plain(value, redact)))}" for key, value in extras.items())
        if ids:
            tail += f"  [{', '.join(ids)}]"
        if self._colour:
            level = f"{_COLOURS.get(record.levelno, '')}{level}{_RESET}"
            time, tail = f"{_DIM}{time}{_RESET}", f"{_DIM}{tail}{_RESET}" if tail else ""
        # Redacted first: once escaped, a password with odd characters is not recognised any more.
        lines = [f"{time} {level} {name:<10} {printable(redact(_message(record)))}{tail}"]
        lines += [printable(redact(text)) for text in (_traceback(record), record.stack_info) if text]
        return "\n".join(lines)
