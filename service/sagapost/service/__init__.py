"""A service as its author writes it: outbox, inbox and sagas in one object, on one set of tables."""

from sagapost.service.options import HandlerOptions, Handles
from sagapost.service.service import Service
from sagapost.service.tables import ServiceTables

__all__ = ["Service", "ServiceTables", "HandlerOptions", "Handles"]
