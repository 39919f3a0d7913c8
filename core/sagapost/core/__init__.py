"""What every part of sagapost shares: the event, the ports, the errors, the codec, and the saga context."""

from sagapost.core.backoff import Backoff
from sagapost.core.clock import Clock, SystemClock
from sagapost.core.codec import decode_data, encode_data
from sagapost.core.context import SagaContext, bind, continue_from, current
from sagapost.core.envelope import Event, validate_event
from sagapost.core.errors import SagapostError
from sagapost.core.ids import new_id, new_uuid
from sagapost.core.naming import event, event_type_of
from sagapost.core.observer import Observation, Observer, Observers

__all__ = [
    "Event",
    "event",
    "event_type_of",
    "validate_event",
    "new_id",
    "new_uuid",
    "encode_data",
    "decode_data",
    "SagaContext",
    "bind",
    "continue_from",
    "current",
    "Clock",
    "SystemClock",
    "Backoff",
    "Observation",
    "Observer",
    "Observers",
    "SagapostError",
]
