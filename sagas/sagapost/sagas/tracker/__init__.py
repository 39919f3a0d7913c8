"""The tracker: every event, folded by correlation id into where each saga is."""

from sagapost.sagas.tracker.fold import fold
from sagapost.sagas.tracker.timeline import timeline, tree
from sagapost.sagas.tracker.view import SagaState, SagaView

__all__ = ["fold", "timeline", "tree", "SagaState", "SagaView"]
