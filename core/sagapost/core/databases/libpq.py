"""What libpq says of a connection that failed: a text in English, for it keeps the server's SQLSTATE to itself.

The one place that decides by text, since there is nothing else. psycopg passes the text on. A server that speaks
another language is taken for one that is away: it is waited for, and the operator reads its own words.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["code_in"]

_SAID: Final = (
    ("28000", r"\w+ authentication failed for user|certificate authentication failed"),
    ("28P01", r"password authentication failed|no password supplied|empty password returned by client"),
    ("28000", r"no pg_hba\.conf entry|pg_hba\.conf rejects|role \".*\" does not exist|is not permitted to log in"),
    ("3D000", r"database \".*\" does not exist|database \".*\" is not currently accepting connections"),
    ("42501", r"permission denied for database"),
    ("SSL", r"certificate verify failed|server does not support SSL|does not match host name|root certificate file"),
    ("53300", r"too many (connections|clients)|connection slots are reserved|connection limit exceeded"),
    ("57P03", r"the database system is"),
)
_AWAY: Final = re.compile(
    r"Connection refused|No such file or directory|timeout expired|could not translate host name"
    r"|Network is unreachable|No route to host|closed the connection unexpectedly|Connection reset"
    r"|session is (read-only|not read-only)|server is (in hot standby mode|not in hot standby mode)"
)


def code_in(text: str) -> str | None:
    """Return the SQLSTATE that a server sent while it was connected to, or `SSL` where no TLS was agreed on.

    None if no server has answered, or one of several hosts has not: that one may answer next time.
    """
    if _AWAY.search(text):
        return None
    found = [code for code, pattern in _SAID if re.search(pattern, text)]
    # The last: of several hosts with several answers the one that is waited for, of two patterns the narrower.
    return found[-1] if found else None
