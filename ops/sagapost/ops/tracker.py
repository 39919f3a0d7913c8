"""A tracker and its corrective actions as services of the daemon."""

from __future__ import annotations

from sagapost.core.broker import Broker
from sagapost.core.observer import Observer
from sagapost.sagas.tracker import Tracker, TrackerConsumer, TrackerConsumerSettings, Watch

__all__ = ["TrackerService", "WatchService"]


class TrackerService:
    """The consumer of a tracker, for one run."""

    def __init__(
        self,
        tracker: Tracker,
        broker: Broker,
        settings: TrackerConsumerSettings,
        observer: Observer,
    ) -> None:
        self._tracker = tracker
        self._consumer = TrackerConsumer(tracker, broker, settings=settings, observer=observer)

    async def run(self) -> int:
        """See `Service.run`. What is not folded was not acknowledged, so nothing is left."""
        await self._tracker.adopt()
        await self._consumer.run()
        return 0

    def stop(self) -> None:
        """See `Service.stop`."""
        self._consumer.stop()


class WatchService:
    """The corrective actions of a tracker, for one run."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def run(self) -> int:
        """See `Service.run`. An action that is cut off is undone by the database, so nothing is left."""
        await self._watch.run()
        return 0

    def stop(self) -> None:
        """See `Service.stop`."""
        self._watch.stop()
