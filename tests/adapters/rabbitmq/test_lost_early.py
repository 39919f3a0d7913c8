"""A connection that is lost between being opened and its first use, or is being closed while it is used."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from sagapost.adapters.rabbitmq.connection import open_link
from sagapost.adapters.rabbitmq.settings import BrokerEndpoint
from sagapost.core.errors import BrokerUnavailableError


async def test_a_channel_on_a_connection_that_is_gone_is_unavailable(amqp_url: str) -> None:
    """aiormq raises a RuntimeError there; to the consumer that reconnects it is one more lost connection."""
    second = timedelta(seconds=1)
    settings = BrokerEndpoint(amqp_url, "test", second * 10, connect_timeout=second, confirm_timeout=second)
    async with open_link(settings, purpose="test") as link:
        link.drop("cut by the test")
        # Until aiormq's own tasks have noticed.
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(BrokerUnavailableError):
            await link.channel()


async def test_writing_to_a_connection_that_is_being_closed_loses_it(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiormq ends its side before the loop tells anybody; what the loop raises then is no bug of the caller's."""
    second = timedelta(seconds=1)
    settings = BrokerEndpoint(amqp_url, "test", second * 10, connect_timeout=second, confirm_timeout=second)

    def ended(_transport: object, _data: bytes) -> None:
        raise RuntimeError("Cannot call write() after write_eof()")

    async with open_link(settings, purpose="test") as link:
        with monkeypatch.context() as patch:
            patch.setattr("asyncio.selector_events._SelectorSocketTransport.write", ended)
            link.write(b"a frame")
        await anyio.wait_all_tasks_blocked()
        assert link.lost is not None
        assert "being closed" in link.lost.text
