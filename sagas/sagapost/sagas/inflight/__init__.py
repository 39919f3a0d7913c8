"""What is in flight, held against the code that is about to run: a gate for deployments (`sagapost saga check`)."""

from sagapost.sagas.inflight.check import check_expected_steps, check_in_flight
from sagapost.sagas.inflight.findings import InFlightFinding, InFlightReport

__all__ = ["InFlightFinding", "InFlightReport", "check_expected_steps", "check_in_flight"]
