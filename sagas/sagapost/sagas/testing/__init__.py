"""Rehearsing a choreography in a test: real handlers and real tables, no server, and a clock that the test moves."""

from sagapost.sagas.testing.clock import VirtualClock
from sagapost.sagas.testing.rehearsal import Rehearsal, RehearsalError
from sagapost.sagas.testing.service import ParkedMessage, RehearsedService

__all__ = ["Rehearsal", "RehearsedService", "ParkedMessage", "RehearsalError", "VirtualClock"]
