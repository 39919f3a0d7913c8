"""Orchestrated islands: where one service leads, inside a saga that nobody leads."""

from sagapost.sagas.orchestration.declaration import IslandStep
from sagapost.sagas.orchestration.island import Island

__all__ = ["Island", "IslandStep"]
