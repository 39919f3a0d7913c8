"""A broker that does exactly what a test tells it: answers, returns, silence, and cuts at the byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pamqp.frame
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

__all__ = ["ScriptedBroker", "scripted_broker"]

_PROPERTIES: dict[str, Any] = {
    "capabilities": {"publisher_confirms": True, "basic.nack": True, "connection.blocked": True}
}

# What is answered without a script: the setting up of connections, channels, topology and consumers.
_ANSWERS: dict[str, Any] = {
    "Connection.StartOk": commands.Connection.Tune(channel_max=2047, frame_max=4096, heartbeat=60),
    "Connection.Open": commands.Connection.OpenOk(),
    "Connection.Close": commands.Connection.CloseOk(),
    "Channel.Open": commands.Channel.OpenOk(),
    "Channel.Close": commands.Channel.CloseOk(),
    "Confirm.Select": commands.Confirm.SelectOk(),
    "Exchange.Declare": commands.Exchange.DeclareOk(),
    "Queue.Declare": commands.Queue.DeclareOk(queue="q", message_count=0, consumer_count=0),
    "Exchange.Bind": commands.Exchange.BindOk(),
    "Queue.Bind": commands.Queue.BindOk(),
    "Queue.Unbind": commands.Queue.UnbindOk(),
    "Basic.Qos": commands.Basic.QosOk(),
    "Basic.Consume": commands.Basic.ConsumeOk(consumer_tag="sagapost"),
    "Basic.Cancel": commands.Basic.CancelOk(consumer_tag="sagapost"),
    "Tx.Select": commands.Tx.SelectOk(),
    "Tx.Rollback": commands.Tx.RollbackOk(),
}


class ScriptedBroker:
    """The server's side of one connection at a time."""

    def __init__(self) -> None:
        self.port = 0
        self.published: list[str] = []
        """Message ids, in the order they arrived."""
        self.observed = False
        """Whether there is an exchange for observers."""
        self.copied: list[str] = []
        """Message ids of what was published to that exchange."""
        self.copies_channel = 0
        """The channel that did it."""
        self.tried: list[str] = []
        """Message ids of those that were only tried, in a transaction."""
        self.refused: dict[str, commands.Channel.Close] = {}
        """What is said to messages that are tried or published, by id, from now on."""
        self.takes_trials = False
        """Whether it has no objection to a message that is only tried."""
        self.opened: int = 0
        """Channels that were opened."""
        self.settled: list[Any] = []
        """Acks, rejects and nacks from the client."""
        self.heartbeats = 0
        self.mute: set[str] = set()
        """Methods that get no answer."""
        self.unknown: set[str] = set()
        """Methods over which it closes the connection."""
        self.connections = 0
        """Connections that were opened."""
        self.channel = 0
        """The channel last used by confirm.select or basic.consume."""
        self.chunk = 0
        """Bytes per write; 0: whatever comes."""
        self._writer: asyncio.StreamWriter | None = None
        self._news = anyio.Event()
        self._transactions: set[int] = set()
        self._target: dict[int, str] = {}
        self._closing: set[int] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"amqp://guest:s3cr3t-pass@127.0.0.1:{self.port}/"

    # --- what a test tells it ---

    async def received(self, count: int) -> None:
        """Wait until `count` messages have arrived."""
        with anyio.fail_after(10):
            while len(self.published) < count:
                await self._news.wait()

    async def received_copies(self, count: int) -> None:
        """Wait until `count` copies for observers have arrived."""
        with anyio.fail_after(10):
            while len(self.copied) < count:
                await self._news.wait()

    async def heard_settling(self, count: int) -> None:
        """Wait until `count` acks, rejects and nacks have arrived."""
        with anyio.fail_after(10):
            while len(self.settled) < count:
                await self._news.wait()

    async def send(self, *frames: Any, channel: int | None = None) -> None:
        """Write frames, by default on the channel in use."""
        number = self.channel if channel is None else channel
        await self.send_bytes(b"".join(pamqp.frame.marshal(frame, number) for frame in frames))

    async def send_bytes(self, data: bytes) -> None:
        """Write bytes as they are, in chunks if told so."""
        assert self._writer is not None
        size = self.chunk or len(data) or 1
        for start in range(0, len(data), size):
            self._writer.write(data[start : start + size])
            await self._writer.drain()
            if self.chunk:
                await anyio.lowlevel.checkpoint()

    async def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Confirm."""
        await self.send(commands.Basic.Ack(tag, multiple))

    async def nack(self, tag: int, *, multiple: bool = False) -> None:
        """Confirm negatively."""
        await self.send(commands.Basic.Nack(tag, multiple, False))

    async def return_message(
        self, message_id: str | None, *, exchange: str, topic: str, body: bytes = b"", channel: int | None = None
    ) -> None:
        """Return a message as unroutable."""
        properties = commands.Basic.Properties(message_id=message_id)
        await self.send(
            commands.Basic.Return(312, "NO_ROUTE", exchange, topic),
            ContentHeader(0, len(body), properties),
            *([ContentBody(body)] if body else []),
            channel=channel,
        )

    async def deliver(self, tag: int, topic: str, bodies: Sequence[bytes], **properties: Any) -> None:
        """Deliver a message, its body in the given pieces."""
        await self.send(
            commands.Basic.Deliver("sagapost", tag, False, "sagapost", topic),
            ContentHeader(0, sum(map(len, bodies)), commands.Basic.Properties(**properties)),
            *map(ContentBody, bodies),
        )

    async def block(self) -> None:
        """Tell the client to pause."""
        await self.send(commands.Connection.Blocked("low on memory"), channel=0)

    async def unblock(self) -> None:
        """Tell the client to go on."""
        await self.send(commands.Connection.Unblocked(), channel=0)

    def stop_reading(self) -> None:
        """Leave whatever the client sends in the socket."""
        assert self._writer is not None
        cast("asyncio.Transport", self._writer.transport).pause_reading()

    def read_again(self) -> None:
        """Take in what was left, and what comes."""
        assert self._writer is not None
        cast("asyncio.Transport", self._writer.transport).resume_reading()

    def cut(self) -> None:
        """End the connection, if there is one, without a word."""
        if self._writer is not None:
            self._writer.transport.abort()

    # --- what it does by itself ---

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writer = writer
        self.connections += 1
        self._transactions.clear()
        self._closing.clear()
        try:
            await reader.readexactly(8)
            await self.send(commands.Connection.Start(0, 9, _PROPERTIES), channel=0)
            while True:
                head = await reader.readexactly(7)
                rest = await reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
                _, channel, frame = pamqp.frame.unmarshal(head + rest)
                await self._take(channel, frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _take(self, channel: int, frame: Any) -> None:
        if isinstance(frame, Heartbeat):
            self.heartbeats += 1
        elif channel in self._closing:
            # Like the original: what comes after the message that closed the channel is ignored.
            if isinstance(frame, commands.Channel.CloseOk):
                self._closing.discard(channel)
        elif isinstance(frame, commands.Basic.Publish):
            self._target[channel] = frame.exchange
        elif (
            isinstance(frame, commands.Exchange.Declare) and frame.exchange.endswith(".observed") and not self.observed
        ):
            self._closing.add(channel)
            code, text = (404, "NOT_FOUND") if frame.passive else (403, "ACCESS_REFUSED")
            await self.send(commands.Channel.Close(code, text, 40, 10), channel=channel)
        elif isinstance(frame, ContentHeader):
            await self._take_message(channel, str(frame.properties.message_id))
        elif frame.name in ("Basic.Ack", "Basic.Reject", "Basic.Nack"):
            self.settled.append(frame)
        elif frame.name == "Channel.Open":
            self.opened += 1
            self._transactions.discard(channel)
            if frame.name not in self.mute:
                await self.send(_ANSWERS[frame.name], channel=channel)
        elif frame.name in self.unknown:
            await self.send(commands.Connection.Close(540, "NOT_IMPLEMENTED", 90, 10), channel=0)
        elif frame.name in _ANSWERS and frame.name not in self.mute:
            if frame.name in ("Confirm.Select", "Basic.Consume"):
                self.channel = channel
            elif frame.name == "Tx.Select":
                self._transactions.add(channel)
            await self.send(_ANSWERS[frame.name], channel=channel)
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _take_message(self, channel: int, message_id: str) -> None:
        if self._target[channel].endswith(".observed"):
            self.copied.append(message_id)
            self.copies_channel = channel
            return
        (self.tried if channel in self._transactions else self.published).append(message_id)
        trial = channel in self._transactions
        if (close := self.refused.get(message_id)) is not None and not (trial and self.takes_trials):
            self._closing.add(channel)
            await self.send(close, channel=channel)


@asynccontextmanager
async def scripted_broker(tls: ssl.SSLContext | None = None) -> AsyncGenerator[ScriptedBroker]:
    """Listen on a free port of the loopback interface."""
    broker = ScriptedBroker()
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=tls)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()
        # From Python 3.12 on, waiting includes the connections: one whose reading was stopped never sees its end.
        broker.cut()
        with anyio.CancelScope(shield=True):
            await server.wait_closed()
