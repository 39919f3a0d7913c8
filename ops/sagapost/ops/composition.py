"""The composition root: what the parts of one process share.

The parts are imported where they are asked for: relays are made in `relaying`, consumers in `consuming`, trackers in
`tracking`, so that a process imports no part that it does not run.
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sagapost.core.broker import Queue
from sagapost.core.databases.closing import dispose
from sagapost.core.observer import Observer, Observers
from sagapost.ops.adapters import make_broker
from sagapost.ops.daemon import Requirement
from sagapost.ops.log_observer import LogObserver
from sagapost.ops.registry import brokers
from sagapost.ops.settings import LoadedSettings

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sagapost.ops.telemetry import OpenTelemetryMetrics

__all__ = ["Composition", "make_metrics"]


def make_metrics(loaded: LoadedSettings) -> OpenTelemetryMetrics | None:
    """Return where figures go, if anywhere.

    :raises MissingExtraError: if OpenTelemetry is asked for and not installed.
    """
    if loaded.settings.process.metrics == "none":
        return None
    from sagapost.ops.telemetry import OpenTelemetryMetrics

    return OpenTelemetryMetrics(system=brokers.find(loaded.broker_url.scheme).name)


class Composition:
    """What the parts of one process share; entered once, inside its event loop.

    One broker (the memory broker only connects those who share the object) serves all of them.
    """

    def __init__(self, loaded: LoadedSettings) -> None:
        self.loaded = loaded
        self.broker = make_broker(loaded)
        self.metrics = make_metrics(loaded)
        self._engines: list[AsyncEngine] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for engine in self._engines:
            await dispose(engine)

    def owns(self, engine: AsyncEngine) -> AsyncEngine:
        """Dispose of the engine when the process ends; return it."""
        self._engines.append(engine)
        return engine

    @property
    def crosses_processes(self) -> bool:
        """Whether other processes receive what is published."""
        return self.broker.capabilities.crosses_processes

    def broker_there(self, *queues: Queue) -> Requirement:
        """The broker answers, takes the credentials, and has or lets us make what we need there, with these queues.

        All queues exist before anything runs: an event counts as routed once *one* queue has it, so a relay in
        the same process would publish past an inbox that is slower to subscribe.
        """

        async def check() -> None:
            await self.broker.declare(*queues)

        return Requirement("broker", check)

    def log_observer(self, logger: str) -> Observer:
        """Return what writes a part's observations to the log."""
        return LogObserver(logging.getLogger(logger))

    def observer(self, logger: str) -> Observer:
        """Return what writes a part's observations to the log and, where there are metrics, counts them."""
        log = self.log_observer(logger)
        return log if self.metrics is None else Observers([log, self.metrics])
