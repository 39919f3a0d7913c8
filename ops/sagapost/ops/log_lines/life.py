"""What every part tells an operator of the servers that it needs."""

from __future__ import annotations

from sagapost.core.life import ServerLost, ServerReady
from sagapost.core.observer import Observation
from sagapost.ops.log_lines.line import INFO, WARNING, Line

__all__ = ["line_for"]


def line_for(event: Observation) -> Line | None:
    """Return the line for a server that went away or is back."""
    match event:
        case ServerLost(part=part, server=server, reason=reason, attempt=attempt, retry_in=retry_in):
            extra = {"part": part, "server": server, "attempt": attempt, "retry_in": round(retry_in, 3)}
            if not attempt:
                # Reported on the way out, where nothing is tried again.
                return Line(WARNING, reason, extra)
            return Line(WARNING, f"{reason} Attempt {attempt}; next in {retry_in:.1f} s.", extra)
        case ServerReady(part=part, server=server):
            return Line(INFO, f"the {server} answers again", {"part": part, "server": server})
        case _:
            return None
