"""How a `sagapost` process behaves, whatever it runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from sagapost.core.backoff import Backoff
from sagapost.core.settings import check, duration, setting, waits

__all__ = ["LogFormat", "LogLevel", "ProcessSettings"]

LogFormat = Literal["auto", "human", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """Logs, metrics, and what to do while a server is not there yet."""

    log_format: LogFormat = setting(
        "auto",
        "`human` lines, `json` lines, or `auto`: human where standard error is a terminal, JSON otherwise.",
        example="json",
        unit="word",
        danger="A collector that parses JSON cannot read `human` lines.",
    )
    log_level: LogLevel = setting(
        "INFO",
        "Least severe log lines that are written.",
        example="DEBUG",
        unit="word",
        danger="`DEBUG` writes a line per batch; `ERROR` hides outages, which are warnings.",
    )
    metrics: Literal["none", "otel"] = setting(
        "none",
        "`otel`: metrics go to OpenTelemetry's global provider, which `opentelemetry-instrument` sets up; needs the "
        "extra `otel`.",
        example="otel",
        unit="word",
        danger="`otel` without a provider: nothing is exported, and nobody is told.",
    )
    fail_fast: bool = setting(
        False,
        "At start, exit with code 5 if the database or the broker cannot be reached, instead of waiting for it.",
        example="true",
        unit="true or false",
        danger="With it, a restart of the broker during a deployment ends the processes that start meanwhile.",
    )
    start_retry: Backoff = waits(
        timedelta(milliseconds=500),
        timedelta(seconds=10),
        prefix="start_retry",
        base=duration(
            "At start, wait after the first failed attempt to reach a server; doubles with each further one.",
            example="500ms",
            danger="Short: many processes hammer a server that is starting.",
            high=timedelta(minutes=10),
        ),
        cap=duration(
            "At start, longest wait between attempts to reach a server. At least `SAGAPOST_START_RETRY_BASE`.",
            example="10s",
            danger="Long: the process begins to work that late after the server is there.",
            high=timedelta(minutes=10),
        ),
    )

    def __post_init__(self) -> None:
        check(self)
