"""From the broker's reply codes and the transport's exceptions to the errors of the port.

Decided by code and class alone. The broker's own text is shown to people and, once the code has decided, searched
for the name of the argument that conflicts, which the protocol carries nowhere else.
"""

from __future__ import annotations

import re
import ssl
from typing import Final

from sagapost.adapters.rabbitmq.transport import CloseReason
from sagapost.core.errors import (
    BrokerError,
    BrokerRefusedError,
    BrokerUnavailableError,
    SagapostError,
    TopologyConflictError,
)

__all__ = ["closed_error", "conflicting_argument", "connect_error", "declare_error"]

# AMQP 0-9-1 reply codes.
ACCESS_REFUSED: Final = 403
NOT_FOUND: Final = 404
RESOURCE_LOCKED: Final = 405
PRECONDITION_FAILED: Final = 406
NOT_ALLOWED: Final = 530
NOT_IMPLEMENTED: Final = 540

_REFUSALS = frozenset({ACCESS_REFUSED, NOT_ALLOWED})

_CONFLICT = re.compile(r"inequivalent arg '(?P<argument>[^']*)' .*?: (?P<detail>received .*)")


def connect_error(address: str, error: BaseException | None, reason: CloseReason | None) -> BrokerError:
    """Return the error for a connection that did not come about.

    `reason` is what the broker said, if it said anything; then it decides.
    """
    if reason is not None and reason.code is not None:
        if reason.code in _REFUSALS:
            return BrokerRefusedError(
                f"The broker at {address} refused the connection: {reason.text}. "
                "Check user, password, virtual host and permissions."
            )
        return BrokerUnavailableError(f"The broker at {address} is not available: {reason.text}. Try again later.")
    if isinstance(error, ssl.SSLError):
        # The peer is there and will not agree to TLS on the next attempt either.
        what = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
        return BrokerRefusedError(
            f"No TLS connection to the broker at {address}: {what or type(error).__name__}. "
            "Check the port, and cafile, certfile and keyfile in the broker's URL."
        )
    if isinstance(error, TimeoutError):
        return BrokerUnavailableError(
            f"The broker at {address} did not answer within the connect timeout. Check host and port, or try later."
        )
    why = reason.text if reason is not None else _describe(error)
    return BrokerUnavailableError(f"The broker at {address} cannot be reached: {why}. Check host and port.")


def closed_error(address: str, reason: CloseReason, what: str) -> BrokerError:
    """Return the error for a channel or connection that ended while in use."""
    if reason.code in _REFUSALS:
        return BrokerRefusedError(
            f"The broker at {address} refused {what}: {reason.text}. Check the permissions of its user."
        )
    return BrokerUnavailableError(f"The {what} at {address} ended: {reason.text}. Open it again.")


def declare_error(address: str, reason: CloseReason, *, entity: str, name: str) -> SagapostError:
    """Return the error for an exchange or queue that could not be declared."""
    if reason.code == PRECONDITION_FAILED:
        found = _CONFLICT.search(reason.text)
        return TopologyConflictError(
            entity=entity,
            name=name,
            argument=f"argument {found['argument']!r}" if found else "set of arguments",
            detail=found["detail"] if found else reason.text,
        )
    if reason.code in (ACCESS_REFUSED, RESOURCE_LOCKED, NOT_ALLOWED, NOT_FOUND):
        return BrokerRefusedError(
            f"The broker at {address} refused to declare the {entity} {name!r}: {reason.text}. "
            "Check the permissions of its user and the names."
        )
    return BrokerUnavailableError(
        f"The broker at {address} could not declare the {entity} {name!r}: {reason.text}. Try again later."
    )


def conflicting_argument(reason: CloseReason) -> str:
    """Return the name of the argument that an entity has with another value; "" if the broker names none."""
    found = _CONFLICT.search(reason.text)
    return found["argument"] if found else ""


def _describe(error: BaseException | None) -> str:
    if error is None:
        return "it closed the connection"
    # aiormq wraps the operating system's error; the inner one has the useful words, and no credentials in it.
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    text = getattr(cause, "strerror", None)
    return text if isinstance(text, str) and text else type(cause).__name__
