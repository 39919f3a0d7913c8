"""The tracker of a process, and its corrective actions."""

from __future__ import annotations

from collections.abc import Sequence

from sagapost.core.broker import Broker
from sagapost.core.observer import Observer
from sagapost.ops.composition import Composition
from sagapost.ops.consuming import make_consumer_engine
from sagapost.ops.daemon import Requirement, Worker
from sagapost.ops.tables import tables_of
from sagapost.outbox import Outbox
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.tracker import Rule, Tracker, TrackerConsumer, TrackerConsumerSettings, TrackerSettings, Watch

__all__ = ["trackers"]


def trackers(
    composition: Composition,
    choreography: Choreography | None,
    *,
    keys: Sequence[str],
    ends: Sequence[str],
    rules: Sequence[Rule],
    queue: str,
) -> tuple[list[Requirement], list[Worker]]:
    """Return what a tracker on the settings' database needs, and what runs."""
    loaded = composition.loaded
    engine = composition.owns(make_consumer_engine(loaded, inboxes=1))
    tables = tables_of(loaded.settings)
    tracker = Tracker(
        engine,
        choreography,
        tables=tables.tracker,
        settings=TrackerSettings(keys=tuple(keys), ends=tuple(ends)),
    )
    observer = composition.log_observer("sagapost.tracker")
    drain = loaded.settings.consumer.drain_timeout
    consumer = TrackerConsumerSettings(queue=queue)

    def make() -> TrackerService:
        return TrackerService(tracker, composition.broker, consumer, observer)

    workers = [Worker("tracker", make, drain)]
    if rules:
        outbox = Outbox(source="urn:sagapost:tracker", tables=tables.outbox)

        def make_watch() -> WatchService:
            return WatchService(Watch(tracker, rules, outbox=outbox, observer=observer))

        workers.append(Worker("watch", make_watch, drain))
    return [Requirement("database", tracker.check)], workers


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
        """See `Supervised.run`. What is not folded was not acknowledged, so nothing is left."""
        await self._tracker.adopt()
        await self._consumer.run()
        return 0

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._consumer.stop()


class WatchService:
    """The corrective actions of a tracker, for one run."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def run(self) -> int:
        """See `Supervised.run`. An action that is cut off is undone by the database, so nothing is left."""
        await self._watch.run()
        return 0

    def stop(self) -> None:
        """See `Supervised.stop`."""
        self._watch.stop()
