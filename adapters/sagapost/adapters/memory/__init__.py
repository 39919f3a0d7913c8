"""A broker inside the process: the full port, for tests, the embedded demo, and trying things out."""

from sagapost.adapters.memory.broker import MemoryBroker

__all__ = ["MemoryBroker"]
