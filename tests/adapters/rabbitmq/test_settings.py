"""Configuration is checked when it is given, before anything is opened."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import Any

import anyio
import pytest

from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.errors import ConfigurationError, MissingExtraError
from tests.adapters.rabbitmq.shown import reasons


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "http://localhost"},
        {"url": "amqp://user:s3cret@"},
        {"url": "amqp://user:s3cret@host:port/"},
        {"url": "amqp://user:s3cret@[::1/"},
        {"heartbeat": timedelta(0)},
        {"connect_timeout": timedelta(0)},
        {"confirm_timeout": timedelta(seconds=-1)},
        {"exchange": ""},
        {"exchange": "amq.direct"},
        {"queue_type": "mirrored"},
        {"max_message_bytes": 0},
        {"delivery_limit": 0},
    ],
)
def test_settings_are_checked_before_anything_is_opened(settings: dict[str, Any]) -> None:
    """A setting out of range is an error of the configuration that names it and shows no secret."""
    values: dict[str, Any] = {"url": "amqp://localhost", **settings}
    with pytest.raises(ConfigurationError) as caught:
        RabbitMQBroker(**values)
    assert "s3cret" not in reasons(caught.value)
    assert next(iter(settings)) in str(caught.value) or "URL" in str(caught.value)


def test_a_missing_tls_file_is_an_error_of_the_configuration() -> None:
    """The path is named, and no connection is attempted in vain."""
    broker = RabbitMQBroker("amqps://user:s3cret@localhost:1/?cafile=/no/such/ca.pem")
    with pytest.raises(ConfigurationError, match="cafile, certfile or keyfile"):
        anyio.run(broker.declare)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://user:s3cret@host", "amqp://host:5672/"),
        ("amqps://user:s3cret@host/?cafile=/x", "amqps://host:5671/"),
        ("amqp://user:s3%2Fcret@host:1234/a%2Fb", "amqp://host:1234/a%2Fb"),
        ("amqp://user:s3cret@[::1]:1234/v", "amqp://[::1]:1234/v"),
    ],
)
def test_the_address_shows_where_and_no_secret(url: str, address: str) -> None:
    """Host, port and virtual host, with the defaults filled in; user, password and query left out."""
    broker = RabbitMQBroker(url)
    assert broker.address == address
    assert "s3" not in repr(broker)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without aiormq the first use says what to install."""
    monkeypatch.setattr("sagapost.adapters.rabbitmq.broker.find_spec", {}.get)
    with pytest.raises(MissingExtraError, match=r"sagapost\[rabbitmq\]"):
        RabbitMQBroker("amqp://host")


def test_configuration_does_not_load_the_driver() -> None:
    """Importing and configuring stay cheap: the driver is loaded with the first connection."""
    code = (
        "import sys; from sagapost.adapters.rabbitmq import RabbitMQBroker; RabbitMQBroker('amqp://host'); "
        "sys.exit('aiormq' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
