"""What an island sends to itself, through its service's own outbox and inbox.

Without an ordering key: the end of a step's time, and a decision about it, wait behind no command that cannot be
delivered.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from sagapost.core.naming import event

__all__ = ["Decision", "StepDecided", "StepTimedOut"]

Decision = Literal["retry", "done", "give-up"]


@event("sagapost.island.timed-out.v1")
class StepTimedOut(msgspec.Struct, frozen=True):
    """No answer came in time. Published under a type of the service's own; see `Island`."""

    run: str
    step: str
    attempt: int
    undo: bool


@event("sagapost.island.decided.v1")
class StepDecided(msgspec.Struct, frozen=True):
    """A person has decided how a step goes on. Published under a type of the service's own; see `Island`."""

    run: str
    step: str
    decision: Decision
