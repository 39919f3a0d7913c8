"""The most a broker takes from one publisher: pre-encoded frames on a raw socket, with a window of confirms.

No events, no encoding, no event loop; a process of its own, so that nothing else runs beside it. Every benchmark that
publishes is compared with this, in the same run, on the same broker, with messages of the same size on the wire.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from datetime import UTC, datetime
from struct import Struct
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import aiormq
import anyio
import pamqp.frame
from aiormq.abc import AbstractChannel
from pamqp import commands
from pamqp.header import ProtocolHeader

from sagapost.adapters.rabbitmq.frames import PublishEncoder
from sagapost.core.broker import Outgoing
from sagapost.core.envelope import Event
from sagapost.core.ids import new_id

__all__ = ["EXCHANGE", "BenchQueue", "publish_ceiling", "sample_event"]

EXCHANGE = "sagapost"
CHUNK = 100
"""Messages per write, as the relay's batches."""

_FRAME = Struct(">BHI").unpack_from
_ANSWER = Struct(">HHQB").unpack_from


class BenchQueue:
    """A durable queue bound to the topic, with the exchange; deleted at the end, with what it holds."""

    def __init__(self, amqp: str, *, kind: str, topic: str, name: str = "bench") -> None:
        self.name = name
        self._amqp = amqp
        self._kind = kind
        self._topic = topic

    async def __aenter__(self) -> BenchQueue:
        await self._delete()
        async with aiormq.Connection(self._amqp) as connection:
            channel = await connection.channel()
            await channel.exchange_declare(EXCHANGE, exchange_type="topic", durable=True)
            await channel.queue_declare(self.name, durable=True, arguments={"x-queue-type": self._kind})
            await channel.queue_bind(self.name, EXCHANGE, routing_key=self._topic)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._delete()

    async def count(self) -> int:
        """Return how many messages wait in it."""
        async with aiormq.Connection(self._amqp) as connection:
            channel = await connection.channel()
            declared = await channel.queue_declare(self.name, passive=True)
            return declared.message_count or 0

    async def _delete(self) -> None:
        async with aiormq.Connection(self._amqp) as connection:
            channel: AbstractChannel = await connection.channel()
            await channel.queue_delete(self.name)


async def publish_ceiling(amqp: str, *, topic: str, count: int, payload_bytes: int, window: int) -> float:
    """Publish `count` messages from a process of its own; return messages per second, first write to last confirm."""
    command = [sys.executable, "-m", "benchmarks.ceiling", "--topic", topic, "--count", str(count)]
    command += ["--payload-bytes", str(payload_bytes), "--window", str(window)]
    # The URL goes through standard input: arguments are visible to everybody on the machine.
    process = await anyio.run_process(command, input=amqp.encode(), stderr=None)
    return float(process.stdout.decode())


def sample_event(topic: str, payload_bytes: int, *, key: int = 0) -> Event:
    """Return an event as services publish them: in a saga, with a cause and a key."""
    return Event(
        id=new_id(),
        source="https://orders.streamtech.example",
        type=topic,
        time=datetime.now(UTC),
        data=b"x" * payload_bytes,
        correlationid=new_id(),
        causationid=new_id(),
        partitionkey=f"order-{key}",
    )


class _RawConnection:
    """Just enough AMQP 0-9-1 to publish with confirms on channel 1."""

    def __init__(self, amqp: str) -> None:
        url = urlsplit(amqp)
        self._socket = socket.create_connection((url.hostname or "localhost", url.port or 5672))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._socket.sendall(ProtocolHeader().marshal())
        self._await("Connection.Start")
        response = f"\0{unquote(url.username or 'guest')}\0{unquote(url.password or 'guest')}"
        self._send(commands.Connection.StartOk(client_properties={}, mechanism="PLAIN", response=response), 0)
        tune = self._await("Connection.Tune")
        self.frame_max: int = tune.frame_max
        self._send(commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        vhost = unquote(url.path[1:]) or "/"
        self._call(commands.Connection.Open(virtual_host=vhost), 0, "Connection.OpenOk")
        self._call(commands.Channel.Open(), 1, "Channel.OpenOk")
        self._call(commands.Confirm.Select(), 1, "Confirm.SelectOk")

    def publish(self, message: bytes, count: int, window: int) -> float:
        """Publish `count` messages; return seconds."""
        chunk = message * CHUNK
        sent = watermark = 0
        early: set[int] = set()
        started = time.perf_counter()
        while watermark < count:
            while sent < count and sent + CHUNK - watermark - len(early) <= window:
                self._socket.sendall(chunk)
                sent += CHUNK
            data = self._rest + self._socket.recv(256 * 1024)
            at = 0
            while len(data) - at >= 8:
                size: int = _FRAME(data, at)[2]
                if len(data) - at < size + 8:
                    break
                class_id, method, tag, bits = _ANSWER(data, at + 7)
                if (class_id, method) != (60, 80):
                    raise RuntimeError(f"the broker answered with method {class_id}.{method} instead of basic.ack")
                if bits & 1:
                    watermark = tag
                    early = {t for t in early if t > tag}
                elif tag == watermark + 1:
                    watermark = tag
                else:
                    early.add(tag)
                while watermark + 1 in early:
                    watermark += 1
                    early.discard(watermark)
                at += size + 8
            self._rest = data[at:]
        return time.perf_counter() - started

    def close(self) -> None:
        """Say goodbye."""
        self._call(commands.Connection.Close(200, "done", 0, 0), 0, "Connection.CloseOk")
        self._socket.close()

    def _send(self, frame: Any, channel: int) -> None:
        self._socket.sendall(pamqp.frame.marshal(frame, channel))

    def _call(self, frame: Any, channel: int, answer: str) -> None:
        self._send(frame, channel)
        self._await(answer)

    def _await(self, name: str) -> Any:
        while True:
            if len(self._rest) >= 8 and len(self._rest) >= _FRAME(self._rest, 0)[2] + 8:
                used, _, frame = pamqp.frame.unmarshal(self._rest)
                self._rest = self._rest[used:]
                if frame.name != name:
                    raise RuntimeError(f"the broker sent {frame.name} instead of {name}")
                return frame
            data = self._socket.recv(65536)
            if not data:
                raise RuntimeError(f"the broker closed the connection before {name}")
            self._rest += data


def main() -> None:
    """Publish and print messages per second; the broker's URL comes on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--topic", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--payload-bytes", type=int, default=500)
    parser.add_argument("--window", type=int, default=2000)
    options = parser.parse_args()
    if options.count % CHUNK:
        parser.error(f"--count must be a multiple of {CHUNK}")
    connection = _RawConnection(sys.stdin.read())
    encoder = PublishEncoder(channel=1, exchange=EXCHANGE, frame_max=connection.frame_max)
    frames: list[bytes] = []
    encoder.encode(Outgoing(sample_event(options.topic, options.payload_bytes), options.topic), frames)
    seconds = connection.publish(b"".join(frames), options.count, options.window)
    connection.close()
    sys.stdout.write(f"{options.count / seconds}\n")


if __name__ == "__main__":
    main()
