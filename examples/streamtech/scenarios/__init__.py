"""Stories about one order, or one customer, each with its expected end: `make demo SCENARIO=...`."""

from __future__ import annotations

from examples.streamtech.scenarios import enrolment, orders
from examples.streamtech.scenarios.scenario import Outcome, Scenario, run
from examples.streamtech.services import ENROLMENT, ISLAND, REORDERED

__all__ = ["SCENARIOS", "Outcome", "Scenario", "run"]

SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("happy", orders.happy),
        Scenario("insufficient-stock", orders.insufficient_stock),
        Scenario("payment-declined", orders.payment_declined),
        Scenario("gateway-timeout", orders.gateway_timeout),
        Scenario("item-missing", orders.item_missing),
        Scenario("points-after-dispatch", orders.points_after_dispatch, REORDERED),
        Scenario("courier-tomorrow", orders.courier_tomorrow),
        Scenario("stuck", orders.stuck),
        Scenario("island", orders.island, ISLAND),
        Scenario("island-fails", orders.island_fails, ISLAND),
        Scenario("local-acid", enrolment.local_acid, ()),
        Scenario("two-services", enrolment.two_services, ENROLMENT),
        Scenario("two-services-withdrawn", enrolment.withdrawn, ENROLMENT),
    )
}
