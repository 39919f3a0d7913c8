"""Routes: addressing, and which ones have proven to deliver."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sagapost.outbox.relay import routes as module
from sagapost.outbox.relay.routes import Routes
from sagapost.outbox.relay.settings import Routing
from tests.relay.rows import TOPIC, make_row


@dataclass
class Bench:
    """Routes on a clock of the test."""

    now: float = 0.0
    serial: bool = False
    routing: Routing = field(default_factory=Routing)
    routes: Routes = field(init=False)

    def __post_init__(self) -> None:
        self.routes = Routes(self.routing, suspicion=60.0, serial=self.serial, monotonic=lambda: self.now)


def test_a_row_goes_to_its_topic_on_the_default_exchange() -> None:
    """Without routing of its own."""
    outgoing = Bench().routes.outgoing(make_row(1))
    assert (outgoing.topic, outgoing.destination, outgoing.event.id) == (TOPIC, None, "event-1")


def test_a_type_can_have_an_exchange_and_a_topic_of_its_own() -> None:
    """Others are not touched."""
    routes = Bench(routing=Routing(destinations={TOPIC: "audit"}, topics={TOPIC: "audit.placed"})).routes
    outgoing = routes.outgoing(make_row(1))
    assert (outgoing.topic, outgoing.destination) == ("audit.placed", "audit")
    outgoing = routes.outgoing(make_row(2, topic="other"))
    assert (outgoing.topic, outgoing.destination) == ("other", None)


def test_a_route_is_proven_by_a_confirm_and_only_that_route() -> None:
    """By topic, and by destination where types have one."""
    routes = Bench(routing=Routing(destinations={"b": "exchange"})).routes
    assert not routes.proven(make_row(1, topic="a"))
    routes.confirmed(make_row(1, topic="a"))
    assert routes.proven(make_row(2, topic="a"))
    assert not routes.proven(make_row(3, topic="b"))
    routes.confirmed(make_row(3, topic="b"))
    assert routes.proven(make_row(4, topic="b"))


def test_a_refusal_makes_a_route_suspect_for_a_while() -> None:
    """Confirms count again once the time is over, not before."""
    bench, row = Bench(), make_row(1)
    bench.routes.confirmed(row)
    bench.routes.refused(row)
    assert not bench.routes.proven(row)
    bench.now = 59.0
    bench.routes.confirmed(row)
    assert not bench.routes.proven(row)
    bench.now = 60.0
    bench.routes.confirmed(row)
    assert bench.routes.proven(row)


def test_a_new_connection_proves_everything_anew() -> None:
    """The topology may have changed; a suspicion outlives the connection."""
    bench, good, bad = Bench(), make_row(1), make_row(2, topic="bad")
    bench.routes.confirmed(good)
    bench.routes.refused(bad)
    bench.routes.reset()
    assert not bench.routes.proven(good)
    bench.routes.confirmed(bad)
    assert not bench.routes.proven(bad)


def test_a_serial_relay_proves_nothing() -> None:
    """`serial_keys`."""
    bench = Bench(serial=True)
    bench.routes.confirmed(make_row(1))
    assert not bench.routes.proven(make_row(2))


def test_topics_without_bound_cost_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is capped; forgetting costs a round trip, not order."""
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 10)
    bench, rows = Bench(), [make_row(number, topic=f"topic-{number}") for number in range(100)]
    for row in rows:
        bench.routes.confirmed(row)
    remembered = sum(bench.routes.proven(row) for row in rows)
    assert 0 < remembered <= 10
    for row in rows:
        bench.routes.refused(row)
    suspected = 0
    for row in rows:
        bench.routes.confirmed(row)
        suspected += not bench.routes.proven(row)
    assert 0 < suspected <= 10
