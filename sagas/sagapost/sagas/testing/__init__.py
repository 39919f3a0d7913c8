"""Rehearsing a choreography in a test: real handlers and real tables, no server, and a clock that the test moves."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.sagas.testing.clock import VirtualClock
    from sagapost.sagas.testing.rehearsal import Rehearsal, RehearsalError
    from sagapost.sagas.testing.service import RehearsedService, UnhandledMessage
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "clock": "VirtualClock",
            "rehearsal": "Rehearsal RehearsalError",
            "service": "RehearsedService UnhandledMessage",
        },
    )

__all__ = ["Rehearsal", "RehearsedService", "UnhandledMessage", "RehearsalError", "VirtualClock"]
