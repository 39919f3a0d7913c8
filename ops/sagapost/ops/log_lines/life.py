"""What every part tells an operator of the servers that it needs."""

from __future__ import annotations

from sagapost.core.life import ServerLost, ServerReady
from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import INFO, Line, lost

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for a server that went away or is back."""
    match event:
        case ServerLost(part=part, server=server, reason=reason, attempt=attempt, retry_in=retry_in):
            return lost({"part": part, "server": server}, reason, attempt, retry_in)
        case ServerReady(part=part, server=server):
            return Line(INFO, f"the {server} answers again", {"part": part, "server": server})
        case _:
            return None
