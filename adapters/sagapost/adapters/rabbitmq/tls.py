"""TLS by URL: the files it names made into a context, and why a peer hangs up right after the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass

import anyio
import anyio.to_thread

from sagapost.core.errors import ConfigurationError

__all__ = ["TLSFiles", "alert_after_handshake", "client_context"]

_ALERT_SECONDS = 2.0
"""How long a peer that refuses a certificate may take to say so: it does at once, in answer to the handshake."""


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """What the broker's URL says about TLS."""

    cafile: str | None
    capath: str | None
    certfile: str | None
    keyfile: str | None
    verify: bool


async def client_context(files: TLSFiles) -> ssl.SSLContext:
    """Read the files.

    :raises ConfigurationError: if one is missing, cannot be read, or is not what it should be.
    """
    return await anyio.to_thread.run_sync(_client_context, files)


def _client_context(files: TLSFiles) -> ssl.SSLContext:
    named = ", ".join(
        f"{name} {value}"
        for name in ("cafile", "capath", "certfile", "keyfile")
        if (value := getattr(files, name)) is not None
    )
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=files.cafile, capath=files.capath)
        if files.certfile is not None:
            context.load_cert_chain(files.certfile, files.keyfile, password=_no_password)
        elif files.keyfile is not None:
            raise ConfigurationError("The broker's URL names a keyfile and no certfile. Name both, or neither.")
    except FileNotFoundError:
        raise ConfigurationError(
            f"A TLS file named in the broker's URL does not exist ({named}). Correct cafile, certfile or keyfile."
        ) from None
    except OSError as error:
        # ssl.SSLError is one: not a certificate, a key of another certificate, a key without its file.
        what = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigurationError(
            f"A TLS file named in the broker's URL cannot be used ({named}): {what or type(error).__name__}. "
            "cafile holds certificates of authorities, certfile the client's certificate, keyfile its key, all in PEM."
        ) from None
    if not files.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _no_password() -> str:
    # Without this OpenSSL asks for the pass phrase at the terminal, and a service waits there for ever.
    raise ConfigurationError(
        "The keyfile named in the broker's URL is encrypted, and a service has nobody to ask for its password. "
        "Give it a key without one, readable by this service alone."
    )


async def alert_after_handshake(host: str, port: int, context: ssl.SSLContext) -> ssl.SSLError | None:
    """Find out what a peer says that ends connections right after the TLS handshake; None: nothing.

    With TLS 1.3 a peer refuses the client's certificate after the handshake has ended for the client, which has sent
    its first bytes by then; the reset that they meet takes the alert with it. So connect again, and only listen.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        with anyio.move_on_after(_ALERT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            await reader.read(1)
    except ssl.SSLError as error:
        return error
    except (OSError, EOFError):
        return None
    finally:
        if writer is not None:
            writer.transport.abort()
            with contextlib.suppress(OSError), anyio.CancelScope(shield=True):
                await writer.wait_closed()
    return None
