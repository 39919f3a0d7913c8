"""An island as declared: its steps, its state, and the events with which it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncSession

from sagapost.core.codec import decode_data, encode_data
from sagapost.core.errors import ConfigurationError
from sagapost.inbox.declared.outcomes import NotKnown
from sagapost.sagas.orchestration.declaration import Build, IslandStep
from sagapost.sagas.rollbacks import Rollbacks

__all__ = ["IslandPlan"]


class IslandPlan:
    """What a coordinator follows.

    :raises ConfigurationError: if the name does not do.
    """

    def __init__(self, name: str, *, state: type, sagas: Rollbacks) -> None:
        if not name.isprintable() or not 0 < len(name.encode()) <= 100:
            raise ConfigurationError(f"Island(name) has 1 to 100 printable bytes, not {name!r}.")
        self.name = name
        self.sagas: Rollbacks = sagas
        self.steps: list[IslandStep] = []
        """In the order of declaration."""
        self.started_by: tuple[str, ...] = ()
        self.completed: Build | None = None
        self.failed: Callable[[Any, str], Any] | None = None
        self.completes_with: str | None = None
        self.fails_with: str | None = None
        self.timeout_type = f"{sagas.service}.{name}.step-timed-out.v1"
        self.decision_type = f"{sagas.service}.{name}.step-decided.v1"
        self._state = state

    def find_step(self, name: str) -> IslandStep | None:
        """Return a step; None if it is not declared any more."""
        return next((step for step in self.steps if step.name == name), None)

    def step_named(self, name: str) -> IslandStep:
        """Return a step.

        :raises NotKnown: if this version does not declare it.
        """
        step = self.find_step(name)
        if step is None:
            raise NotKnown(
                f"A run of the island {self.name!r} has the step {name!r}, which this version does not declare. "
                "Keep declaring it until no run is in flight that has it; what it waits for waits until then."
            )
        return step

    def load(self, data: Any) -> Any:
        """Return a run's state as the user's class."""
        return decode_data(
            msgspec.json.encode(data), self._state, event_id=self.name, event_type=f"state of {self.name}"
        )

    def dump(self, state: Any) -> Any:
        """Return a run's state as JSON values."""
        return msgspec.json.decode(encode_data(state, event_type=f"state of {self.name}")[0])

    async def goes_on(self, session: AsyncSession, saga: str) -> bool:
        """Return whether the saga is not being rolled back; the caller holds its lock."""
        row = (await session.execute(self.sagas.ledger(session).lock(saga))).one()
        return bool(row.state == "running")
