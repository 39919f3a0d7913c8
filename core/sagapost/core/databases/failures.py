"""What an error of a database means: a small sum type, told by class and code and not by text.

::

    Unavailable    the database, or this connection to it, cannot serve now; a later attempt on a fresh one may
    ReadOnly       this server takes no writes (a standby, a fail-over); a fresh connection may find another
    Conflict       the transaction was undone, or made to wait too long, for the sake of another one; run it again
    MissingTable   a table, column or schema is not there
    Refused        reached, and said no: credentials, privileges, no such database, a certificate; a person must act
    Other          anything else: the statement or its data are to blame

Each kit (`sagapost.core.databases.kit`) turns an exception into one of these, whoever raised it: the driver,
SQLAlchemy around it, or the socket below it.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

__all__ = [
    "Conflict",
    "Failure",
    "MissingTable",
    "Other",
    "Outage",
    "ReadOnly",
    "Refused",
    "Unavailable",
    "code_of",
    "driver_error",
    "is_lost",
    "of_the_socket",
    "wrapped",
]


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The database, or this connection to it, cannot serve now."""

    code: str
    """SQLSTATE, name of the result code, or the error's class where there is no code."""
    why: str = ""
    """A sentence for the operator where the code says more than "try again"."""
    ended: bool = True
    """The connection is of no use any more, as far as the code can tell; else only this statement failed on it."""


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """This server takes no writes; another connection may reach one that does."""

    code: str
    why: str = "it takes no writes: a standby, or a fail-over in progress"


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another transaction was in the way; this one may be run again as it is."""

    code: str


@dataclass(frozen=True, slots=True)
class MissingTable:
    """A table, column or schema is not there: no tables of ours, or those of another release."""

    code: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The database was reached and said no; a person must act."""

    code: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Other:
    """Anything else: the statement or its data are to blame, not the database."""

    code: str


Failure: TypeAlias = Unavailable | ReadOnly | Conflict | MissingTable | Refused | Other

Outage: TypeAlias = Unavailable | ReadOnly
"""What is waited for. The connection that a statement of ours failed on in this way is dropped, always."""


def driver_error(error: BaseException) -> BaseException:
    """Return what the driver or the socket raised, behind what SQLAlchemy and a handler have wrapped around it.

    Only `raise ... from error` counts as wrapping: an error raised *while* another one is handled has a cause of its
    own. The outermost that says something by itself is it: the cause of a TimeoutError is how it was noticed.
    """
    last = error
    for each in _chain(error):
        last = each
        coded = (getattr(each, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorcode"))
        if any(isinstance(code, str | int) for code in coded) or of_the_socket(each) is not None:
            break
    return last


def code_of(error: BaseException) -> str:
    """Return the SQLSTATE, or the name of the result code, behind any error; an empty string where there is none."""
    cause = driver_error(error)
    for attribute in ("sqlstate", "pgcode", "sqlite_errorname"):
        code: object = getattr(cause, attribute, None)
        if isinstance(code, str):
            return code
    return ""


def wrapped(error: BaseException) -> DBAPIError | None:
    """Return SQLAlchemy's wrapper of a driver's error in the chain of causes, None if there is none."""
    return next((each for each in _chain(error) if isinstance(each, DBAPIError)), None)


def is_lost(error: BaseException) -> bool:
    """Return whether SQLAlchemy found the connection behind an error broken."""
    found = wrapped(error)
    return found is not None and found.connection_invalidated


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    inner: BaseException | None = error
    while inner is not None and id(inner) not in seen:
        seen.add(id(inner))
        yield inner
        if isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
            inner = inner.exceptions[0]
        else:
            inner = inner.orig if isinstance(inner, DBAPIError) else inner.__cause__


_TLS_REFUSALS = frozenset(
    {
        "CERTIFICATE_VERIFY_FAILED",
        "NO_PROTOCOLS_AVAILABLE",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV13_ALERT_CERTIFICATE_REQUIRED",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "TLSV1_ALERT_UNKNOWN_CA",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
"""OpenSSL's names for a peer that is there and will not agree to TLS on the next attempt either."""


def of_the_socket(error: BaseException) -> Failure | None:
    """Return what an error below every driver means; None if it is none."""
    name = type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return Refused(name, f"its certificate is not trusted ({error.verify_message})")
    if isinstance(error, ssl.SSLError) and error.reason in _TLS_REFUSALS:
        return Refused(error.reason, "no TLS connection could be agreed on")
    if isinstance(error, PoolTimeoutError):
        return Unavailable(name, "no connection of the engine's pool became free in time")
    if isinstance(error, TimeoutError):
        return Unavailable(name, "it did not answer in time")
    if isinstance(error, OSError | EOFError):
        return Unavailable(name)
    return None
