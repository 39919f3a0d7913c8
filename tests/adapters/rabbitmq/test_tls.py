"""TLS by URL: verified by default, with the files named in the query."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import anyio
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed
from sagapost.core.errors import BrokerRefusedError, ConfigurationError
from tests.adapters.rabbitmq.scripted import ScriptedBroker, scripted_broker
from tests.adapters.rabbitmq.shown import reasons
from tests.conformance.broker import answers, outgoing

pytestmark = pytest.mark.usefixtures("nothing_left_behind")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that signs itself, with its key beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "cert.pem"


@pytest.fixture
async def script(certificate: Path) -> AsyncGenerator[ScriptedBroker]:
    """A scripted broker that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    async with scripted_broker(context) as broker:
        yield broker


def url(script: ScriptedBroker, query: str = "") -> str:
    """Return the URL with TLS."""
    return script.url.replace("amqp://", "amqps://") + query


async def publish_one(script: ScriptedBroker, query: str) -> None:
    """Publish one message and have it confirmed."""
    async with RabbitMQBroker(url(script, query)).publisher() as publisher:
        confirmation = await publisher.send(outgoing("t", 1))
        await script.received(1)
        await script.ack(1)
        assert await answers(confirmation) == [Confirmed()]


async def test_a_named_authority_is_trusted(script: ScriptedBroker, certificate: Path) -> None:
    """With `cafile` the connection is verified and works, tap and all."""
    await publish_one(script, f"?cafile={certificate}")


async def test_verification_can_be_switched_off(script: ScriptedBroker) -> None:
    """`no_verify_ssl=1` is there for testing, and has to be asked for."""
    await publish_one(script, "?no_verify_ssl=1")


async def test_an_unknown_certificate_is_a_refusal(script: ScriptedBroker) -> None:
    """Without the authority the connection is refused, with the reason and what to check, and no secret."""
    with pytest.raises(BrokerRefusedError, match=r"self-signed certificate|self signed certificate") as caught:
        async with RabbitMQBroker(url(script)).publisher():
            pass
    assert "cafile" in str(caught.value)
    assert "s3cr3t-pass" not in reasons(caught.value)


@pytest.fixture
def key(certificate: Path) -> Path:
    """The key of the certificate, with a pass phrase."""
    encrypted = certificate.with_name("encrypted.pem")
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:s3cr3t-phrase"]
    command += ["-in", str(certificate.with_name("key.pem")), "-out", str(encrypted)]
    subprocess.run(command, check=True, capture_output=True)
    return encrypted


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?cafile={cert}&certfile={cert}&keyfile={encrypted}", "encrypted"),
        ("?cafile={cert}&certfile={cert}", "cannot be used"),
        ("?cafile={key}", "cannot be used"),
        ("?cafile={folder}", "cannot be used"),
        ("?certfile={cert}&keyfile={cert}.not-there", "does not exist"),
        ("?keyfile={key}", "no certfile"),
    ],
)
async def test_a_tls_file_that_cannot_be_used_is_a_setting_to_correct(
    script: ScriptedBroker, certificate: Path, key: Path, query: str, words: str
) -> None:
    """Said at once, naming the files, without a question at the terminal and without the peer being asked."""
    names = {
        "cert": certificate,
        "key": certificate.with_name("key.pem"),
        "encrypted": key,
        "folder": certificate.parent,
    }
    with pytest.raises(ConfigurationError, match=words), anyio.fail_after(10):
        async with RabbitMQBroker(url(script, query.format(**names))).publisher():
            pass
    assert script.connections == 0


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def strict_peer(request: pytest.FixtureRequest, certificate: Path) -> Iterator[int]:
    """The port of a peer that asks for a certificate, as RabbitMQ does: refused, with an alert, and hung up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    context.load_verify_locations(certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = request.param
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            # In this thread and with a real socket: asyncio's server drops the alert.
            with connection, contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


async def test_a_refused_client_certificate_is_no_outage(strict_peer: int, certificate: Path) -> None:
    """A peer that asks for a certificate and gets none hangs up after the handshake: a refusal, with its reason."""
    broker = RabbitMQBroker(f"amqps://guest:s3cr3t-pass@127.0.0.1:{strict_peer}/?cafile={certificate}")
    for _ in range(5):  # Whether the reset overtakes the alert is a matter of luck.
        with pytest.raises(BrokerRefusedError, match="certfile") as caught, anyio.fail_after(10):
            async with broker.publisher():
                pass
        assert "s3cr3t-pass" not in reasons(caught.value)
