"""The tracker: every event, folded by correlation id into where each saga is."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.sagas.tracker.actions import (
        Action,
        Notify,
        PublishEvent,
        RequestRollback,
        Rule,
        Watch,
        WatchSettings,
    )
    from sagapost.sagas.tracker.consumer import TrackerConsumer, TrackerConsumerSettings
    from sagapost.sagas.tracker.differences import Difference
    from sagapost.sagas.tracker.drawing import timeline, tree
    from sagapost.sagas.tracker.folding import fold
    from sagapost.sagas.tracker.listing import SagaRow
    from sagapost.sagas.tracker.settings import TrackerSettings
    from sagapost.sagas.tracker.tables import TrackerTables
    from sagapost.sagas.tracker.tracker import Tracker
    from sagapost.sagas.tracker.view import SagaState, SagaView
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "actions": "Action Notify PublishEvent RequestRollback Rule Watch WatchSettings",
            "consumer": "TrackerConsumer TrackerConsumerSettings",
            "differences": "Difference",
            "folding": "fold",
            "listing": "SagaRow",
            "settings": "TrackerSettings",
            "tables": "TrackerTables",
            "drawing": "timeline tree",
            "tracker": "Tracker",
            "view": "SagaState SagaView",
        },
    )

__all__ = [
    "fold",
    "timeline",
    "tree",
    "Tracker",
    "TrackerSettings",
    "TrackerTables",
    "SagaState",
    "SagaView",
    "SagaRow",
    "Difference",
    "TrackerConsumer",
    "TrackerConsumerSettings",
    "Rule",
    "Action",
    "RequestRollback",
    "PublishEvent",
    "Notify",
    "Watch",
    "WatchSettings",
]
