"""Logs of a `sagapost` process: one handler on standard error, human or JSON, with the saga's ids on every line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Literal, TextIO

from sagapost.core.context import current
from sagapost.ops.log_format import HumanFormatter, JsonFormatter
from sagapost.ops.masking import Redactor, SecretUrl

__all__ = ["SagaContextFilter", "configure_logging"]

_DRIVERS = {
    "asyncio": logging.WARNING,
    "sqlalchemy": logging.WARNING,
}
"""Loggers of others, and the level below which they have nothing to say to an operator; lower while debugging. An
adapter knows those of its driver."""


class SagaContextFilter(logging.Filter):
    """Puts `correlationid` and `event_id` (the event being handled) on every record; None outside a saga.

    Values passed as `extra` win. It works on any handler: add it to your own where you configure logging yourself.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Annotate the record; let all of them pass."""
        context = current()
        for name, value in (
            ("correlationid", context.correlationid if context else None),
            ("event_id", context.causationid if context else None),
        ):
            if getattr(record, name, None) is None:
                setattr(record, name, value)
        return True


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever standard error is at the time; marks the handler as ours."""


def configure_logging(
    *,
    format: Literal["auto", "human", "json"] = "auto",  # noqa: A002 - the name of the setting
    level: str = "INFO",
    secrets: Iterable[SecretUrl] = (),
    loggers: Mapping[str, int] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send all logging of the process to one stream (default: standard error). Calling it again replaces the handler.

    `auto` writes for a person where the stream is a terminal and JSON lines otherwise. Colour: on a terminal, unless
    the environment sets `NO_COLOR`.

    :param loggers: least levels of loggers of others, beside those of every process.
    """
    target: TextIO = sys.stderr if stream is None else stream
    terminal = target.isatty()
    redact = Redactor(secrets)
    handler = _StderrHandler(target)
    if format == "human" or (format == "auto" and terminal):
        handler.setFormatter(HumanFormatter(redact, colour=terminal and not os.environ.get("NO_COLOR")))
    else:
        handler.setFormatter(JsonFormatter(redact))
    handler.addFilter(SagaContextFilter())
    root = logging.getLogger()
    for existing in list(root.handlers):
        if isinstance(existing, _StderrHandler):
            root.removeHandler(existing)
    root.addHandler(handler)
    root.setLevel(level)
    for name, least in (_DRIVERS | dict(loggers or {})).items():
        logging.getLogger(name).setLevel(max(logging.WARNING if root.level <= logging.DEBUG else least, root.level))
    logging.captureWarnings(capture=True)
