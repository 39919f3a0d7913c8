"""How a `sagapost` process behaves, whatever it runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic_settings import BaseSettings

from sagapost.ops.settings.field import setting
from sagapost.ops.settings.units import Duration

__all__ = ["LogFormat", "LogLevel", "ProcessSettings"]


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


LogFormat = Literal["auto", "human", "json"]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class ProcessSettings(BaseSettings):
    """Logs, metrics, and what to do while a server is not there yet."""

    log_format: Annotated[LogFormat, BeforeValidator(_lower)] = setting(
        "auto",
        "`human` lines, `json` lines, or `auto`: human where standard error is a terminal, JSON otherwise.",
        example="json",
        unit="word",
        danger="A collector that parses JSON cannot read `human` lines.",
    )
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = setting(
        "INFO",
        "Least severe log lines that are written.",
        example="DEBUG",
        unit="word",
        danger="`DEBUG` writes a line per batch; `ERROR` hides outages, which are warnings.",
    )
    metrics: Annotated[Literal["none", "otel"], BeforeValidator(_lower)] = setting(
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
    start_retry_base: Duration = setting(
        timedelta(milliseconds=500),
        "At start, wait after the first failed attempt to reach a server; doubles with each further one.",
        example="500ms",
        unit="duration",
        danger="Short: many processes hammer a server that is starting.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
    start_retry_cap: Duration = setting(
        timedelta(seconds=10),
        "At start, longest wait between attempts to reach a server. At least `SAGAPOST_START_RETRY_BASE`.",
        example="10s",
        unit="duration",
        danger="Long: the process begins to work that late after the server is there.",
        low=timedelta(milliseconds=1),
        high=timedelta(minutes=10),
    )
