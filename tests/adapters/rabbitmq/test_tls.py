"""TLS by URL: verified by default, with the files named in the query."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.broker import Confirmed
from sagapost.core.errors import BrokerRefusedError
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
