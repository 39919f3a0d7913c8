"""One relay as a process of its own, for `benchmarks.relay`: it reports what it did as JSON lines on standard output.

Lines: {"owned": n} when its partitions change, {"settled": n} with each settled batch, and at the end
{"rows", "seconds", "cpu_seconds", "peak_mib"}, measured from the first fetched row to the last settled one.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time

import anyio

from sagapost.adapters.postgresql import PostgreSQLOutboxStore
from sagapost.adapters.rabbitmq import RabbitMQBroker
from sagapost.core.observer import Observation
from sagapost.outbox.relay import Relay
from sagapost.outbox.relay.observations import Fetched, LeasesChanged, Settled


class Meter:
    """Counts and times; ends the run once `rows` are settled."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self.settled = 0
        self._started: tuple[float, float] | None = None
        self._ended = (0.0, 0.0)
        self.done = anyio.Event()

    def notify(self, event: Observation, /) -> None:
        """Take note."""
        match event:
            case Fetched(rows=rows) if rows and self._started is None:
                self._started = (time.perf_counter(), time.process_time())
            case Settled(rows=rows):
                self.settled += rows
                self._ended = (time.perf_counter(), time.process_time())
                say({"settled": self.settled})
                if self.settled >= self._rows:
                    self.done.set()
            case LeasesChanged(owned=owned):
                say({"owned": len(owned)})
            case _:
                pass

    def summary(self) -> dict[str, float]:
        """The last line."""
        wall, cpu = self._started if self._started is not None else self._ended
        return {
            "rows": self.settled,
            "seconds": self._ended[0] - wall,
            "cpu_seconds": self._ended[1] - cpu,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def say(line: dict[str, float]) -> None:
    """Report to the parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def main(options: argparse.Namespace) -> None:
    """Relay until the rows are settled or SIGTERM comes."""
    meter = Meter(options.rows)
    broker = RabbitMQBroker(options.broker, queue_type=options.queue_type)
    relay = Relay(PostgreSQLOutboxStore(options.database), broker, observer=meter)

    signals = anyio.CancelScope()

    async def stop_on_signal() -> None:
        with signals, anyio.open_signal_receiver(signal.SIGTERM) as received:
            async for _ in received:
                meter.done.set()
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        tasks.start_soon(stop_on_signal)
        await meter.done.wait()
        relay.stop()
        signals.cancel()
    say(meter.summary())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--broker", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--queue-type", default="classic")
    arguments = parser.parse_args()
    try:
        import uvloop
    except ModuleNotFoundError:
        anyio.run(main, arguments)
    else:
        anyio.run(main, arguments, backend_options={"loop_factory": uvloop.new_event_loop})
