"""A payment gateway over HTTP that is down, then slow, then answers again: one request after the other, one charge."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import timedelta
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import anyio
import msgspec

from examples.concepts.events import OrderPlaced, PaymentTaken, show
from sagapost import Retry, Service, StepContext, event
from sagapost.sagas.testing import Rehearsal


@event("payment.charge-requested.v1")
class ChargeRequested(msgspec.Struct, frozen=True):
    order: str
    cents: int


payment = Service("payment", source="https://payment.example")
address = ""


@payment.on(OrderPlaced, emits=[ChargeRequested], changes_nothing=True)
async def request_charge(placed: OrderPlaced, ctx: StepContext) -> None:
    await ctx.publish(ChargeRequested(placed.order, 30_00))  # in one transaction with all that this step writes


@payment.on(ChargeRequested, emits=[PaymentTaken], changes_nothing=True)
async def charge(requested: ChargeRequested, ctx: StepContext) -> None:
    # The only thing this handler does. Its event's id is the same at each try: it is the gateway's idempotency key.
    try:
        await anyio.to_thread.run_sync(ask_gateway, requested, ctx.event.id)
    except OSError as error:  # refused, reset, too slow, 5xx: nobody knows whether the card was charged
        raise Retry(after=timedelta(seconds=30), reason=f"the gateway: {error}") from error
    await ctx.publish(PaymentTaken(requested.order, requested.cents))


def ask_gateway(requested: ChargeRequested, key: str) -> None:
    with closing(HTTPConnection(address, timeout=0.5)) as connection:
        connection.request("POST", "/charges", msgspec.json.encode(requested), {"Idempotency-Key": key})
        answer = connection.getresponse()
        answer.read()
        if answer.status != HTTPStatus.OK:
            raise ConnectionError(f"it answered {answer.status}")


class Gateway(BaseHTTPRequestHandler):
    requests = 0
    charges: ClassVar[dict[str, int]] = {}
    received = threading.Event()

    def do_POST(self) -> None:
        asked = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
        Gateway.requests += 1
        if Gateway.requests == 1:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        Gateway.charges.setdefault(self.headers["Idempotency-Key"], asked["cents"])
        if Gateway.requests == 2:
            Gateway.received.wait(10)  # charged, and nobody learns of it in time
        self.send_response(HTTPStatus.OK)
        self.end_headers()

    def log_message(self, format: str, *_: object) -> None: ...  # noqa: A002 the name is the server's


@contextmanager
def a_gateway() -> Generator[str, None, None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        Gateway.received.set()
        server.shutdown()
        thread.join()
        server.server_close()


async def main() -> None:
    global address
    Gateway.requests, Gateway.charges = 0, {}
    with a_gateway() as address:
        async with Rehearsal(duplicates=True) as stage:
            service = await stage.add(payment)
            await stage.say(OrderPlaced("4711"))
            for _ in range(2):
                await stage.run()
                (parked,) = await service.parked()
                print(f"try {parked.attempts}: {parked.error}")
                await stage.advance(timedelta(seconds=30))
            print(f"requests: {Gateway.requests}, charges: {list(Gateway.charges.values())}")
            show(stage)


if __name__ == "__main__":
    anyio.run(main)
