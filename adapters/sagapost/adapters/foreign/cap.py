"""CAP for .NET (DotNetCore.CAP): everything about a message is in headers whose names begin with ``cap-``."""

from __future__ import annotations

from datetime import datetime

from sagapost.adapters.foreign.values import header
from sagapost.core.foreign import Incoming, Reading

__all__ = ["CapReader"]

_ID = "cap-msg-id"


class CapReader:
    """Reads messages of CAP.

    The type is `cap-msg-name`, the correlation `cap-corr-id`. CAP writes `cap-senttime` in the language of its host,
    in which 03/04 may be March or April: only a time that begins with the year is read, and otherwise the broker's
    timestamp or the time of receipt is taken. It names no source: give one with `source_from`, or a property `app_id`.
    """

    def __call__(self, message: Incoming, /) -> Reading | None:
        """Return what the headers say; None: it is no message of CAP."""
        headers = message.headers
        if _ID not in headers:
            return None
        return Reading(
            data=message.body,
            content_type=message.content_type or "application/json",
            id=header(headers, _ID),
            type=header(headers, "cap-msg-name"),
            time=_sent(header(headers, "cap-senttime")),
            correlation=header(headers, "cap-corr-id"),
        )


def _sent(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat((text or "").replace(" +", "+").replace(" -", "-"))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None
