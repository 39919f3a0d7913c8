"""Orchestrated islands: where one service leads, inside a saga that nobody leads."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.sagas.orchestration.declaration import IslandStep
    from sagapost.sagas.orchestration.island import Island
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "declaration": "IslandStep",
            "island": "Island",
        },
    )

__all__ = ["Island", "IslandStep"]
