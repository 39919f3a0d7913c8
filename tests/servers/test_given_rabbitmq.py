"""A broker that somebody else runs: each test has a virtual host of its own, and none is left."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.servers import given_rabbitmq
from tests.servers.given_rabbitmq import GivenRabbitMQ


class Way:
    """Makes virtual hosts in memory."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.there: set[str] = set()
        self.calls = 0

    def make(self, names: Sequence[str]) -> None:
        """Make them, or fail as a program does that is not installed."""
        if self.refuses:
            raise FileNotFoundError("rabbitmqctl")
        self.calls += 1
        self.there |= set(names)

    def delete(self, names: Sequence[str]) -> None:
        """Delete them."""
        self.there -= set(names)


def test_virtual_hosts_are_made_where_it_can_be_done_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that refuses, or that leads to another broker, is passed over; what was made is deleted."""
    missing, elsewhere, right = Way(refuses=True), Way(), Way()

    def answers(url: str) -> bool:
        return url.rpartition("/")[2] in right.there

    monkeypatch.setattr(given_rabbitmq, "answers", answers)
    broker = GivenRabbitMQ("amqp://me:pw@mq.example:5673/theirs", [missing, elsewhere, right])
    given: list[str] = []
    for _ in range(20):
        with broker.fresh_vhost() as name:
            assert name is not None
            given.append(name)
    assert len(set(given)) == 20
    assert set(given) <= right.there
    assert elsewhere.there == set()
    # rabbitmqctl takes a second for each call.
    assert right.calls == 3
    assert broker.amqp_url(given[0]) == f"amqp://me:pw@mq.example:5673/{given[0]}"
    assert broker.amqp_url() == "amqp://me:pw@mq.example:5673/theirs"
    broker.close()
    assert right.there == set()


def test_without_a_way_there_is_none() -> None:
    """The fixture skips the test then, and says why."""
    broker = GivenRabbitMQ("amqp://mq.example/theirs", [Way(refuses=True)])
    with broker.fresh_vhost() as name:
        assert name is None
    broker.close()
