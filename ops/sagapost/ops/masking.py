"""Keeping passwords out of whatever a person or a log collector reads.

Two lines of defence: connection URLs are held in a type whose text is masked (`SecretUrl`), and every log line passes
a `Redactor` that knows the passwords in use, for the texts of drivers that we do not write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

__all__ = ["MASK", "Redactor", "SecretUrl", "mask_url"]

MASK: Final = "***"

# Deliberately strict: each part admits only what cannot be confused with a badly escaped password. A URL that does not
# fit is masked as a whole, since nobody can tell which part of it was meant as the secret.
_URL = re.compile(
    r"""
    (?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://
    (?:(?P<user>[^:@/?\#\s]*)(?P<secret>:[^@/?\#\s]*)?@)?
    (?P<host>(?:\[[0-9A-Fa-f:.%]+\]|[^:@/?\#\[\]\s]*)(?::\d{1,5})?
        (?:,(?:\[[0-9A-Fa-f:.%]+\]|[^:@/?\#\[\],\s]*)(?::\d{1,5})?)*)
    (?P<path>/[^@?\#\s]*)?
    (?:\?(?P<query>[^@?\#\s]*))?
    """,
    re.VERBOSE,
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_SECRET_PARAMETER = re.compile(r"pass|pwd|secret|token|credential|key", re.IGNORECASE)
_USERINFO = re.compile(r"(?P<start>[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*):(?!password@)[^\s]*@")


def mask_url(url: str) -> str:
    """Return `url` with its password, and every query parameter that may hold a secret, replaced by ``***``.

    A URL that is not well formed (for example a password with an unescaped ``@`` or ``/``) is reduced to its scheme.
    """
    match = _URL.fullmatch(url)
    if match is None:
        scheme = _SCHEME.match(url)
        return f"{scheme[0]}://{MASK}" if scheme else MASK
    user, secret, query = match["user"], match["secret"], match["query"]
    text = f"{match['scheme']}://"
    if user is not None:
        text += user + (f":{MASK}" if secret is not None else "") + "@"
    text += match["host"] + (match["path"] or "")
    if query is not None:
        text += "?" + "&".join(_mask_parameter(pair) for pair in query.split("&"))
    return text


def _mask_parameter(pair: str) -> str:
    name, equals, _ = pair.partition("=")
    return f"{name}={MASK}" if equals and _SECRET_PARAMETER.search(unquote(name)) else pair


class SecretUrl:
    """A connection URL whose `str` and `repr` are masked; `reveal()` returns it whole, for a driver."""

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        self._url = url

    def reveal(self) -> str:
        """Return the URL with its password."""
        return self._url

    @property
    def scheme(self) -> str:
        """What stands before ``://``, in lower case; empty if nothing does."""
        match = _SCHEME.match(self._url)
        return match[0].lower() if match else ""

    @property
    def well_formed(self) -> bool:
        """Whether the parts of the URL can be told apart without doubt."""
        return _URL.fullmatch(self._url) is not None

    @property
    def password(self) -> str | None:
        """The password as a server would compare it, where the URL carries one."""
        written = self.written_password
        return None if written is None else unquote(written)

    @property
    def written_password(self) -> str | None:
        """The password as it stands in the URL."""
        match = _URL.fullmatch(self._url)
        if match is None:
            return None
        pairs = (pair.partition("=") for pair in (match["query"] or "").split("&"))
        by_parameter = next((value for name, _, value in pairs if name == "password"), None)
        return (match["secret"] or "")[1:] or by_parameter

    def __str__(self) -> str:
        return mask_url(self._url)

    def __repr__(self) -> str:
        return f"SecretUrl({mask_url(self._url)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretUrl) and other._url == self._url

    def __hash__(self) -> int:
        return hash(self._url)


_SHORTEST_REDACTED = 4


class Redactor:
    """Takes known passwords, and anything shaped like ``scheme://user:password@``, out of a text.

    A password that also is another part of its own URL (`guest`, `postgres`), or is shorter than four characters, is
    left to the URL pattern alone: blotting it out everywhere would protect nothing and ruin the log. The word
    "password" is what examples say.
    """

    def __init__(self, urls: Iterable[SecretUrl] = ()) -> None:
        words: set[str] = set()
        for url in urls:
            password = url.password
            if password is None or len(password) < _SHORTEST_REDACTED or password in str(url):
                continue
            words |= {password, url.written_password or password, repr(password)[1:-1]}
        pattern = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
        self._known = re.compile(pattern) if words else None

    def __call__(self, text: str) -> str:
        """Return `text` without the secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        if "://" in text:
            text = _USERINFO.sub(rf"\g<start>:{MASK}@", text)
        return text
