"""The lint: each planted mistake is found, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sagapost.core.errors import ConfigurationError
from sagapost.sagas.choreography import (
    RULES,
    STALE,
    Acceptance,
    Choreography,
    Compensation,
    DeclaredDeadline,
    Manifest,
    Severity,
    Step,
    lint,
    read_acceptances,
)
from sagapost.sagas.choreography.schemas import conflicts
from tests.sagas.choreographies import healthy, replace_manifest, replace_step

OVERDUE = DeclaredDeadline(name="fulfil", event="order-overdue", after_seconds=3600)


def test_a_healthy_choreography_has_no_findings() -> None:
    """The lint is silent where nothing is wrong; otherwise nobody would let it fail their build."""
    assert lint(Choreography(healthy())) == []


@dataclass(frozen=True)
class Planted:
    """A mistake, and all that may be found because of it."""

    name: str
    manifests: Callable[[], list[Manifest]]
    found: set[tuple[str, str]]
    """Codes and subjects."""


def _without_deadline() -> list[Manifest]:
    orders, *others = healthy()
    steps = tuple(
        msgspec.structs.replace(step, cancels=(), handles=tuple(e for e in step.handles if e != "order-overdue"))
        for step in orders.steps
        if step.name != "watch"
    )
    return [msgspec.structs.replace(orders, steps=steps), *others]


def _counted_beside_a_failure() -> list[Manifest]:
    """Two more steps handle what the payment handles; the second has a transaction of its own."""
    payment = healthy()[1]
    beside = Step(name="count", handles=("order-placed",), changes_nothing=True)
    apart = Step(name="notify", handles=("order-placed",), changes_nothing=True, transaction="mail")
    return replace_manifest("payment", steps=(*payment.steps, beside, apart))


def _without_ends() -> list[Manifest]:
    handled = Step(name="archive", handles=("order-completed", "order-cancelled", "payment-refunded"))
    archive = Manifest(service="archive", source="https://archive.example", steps=(handled,))
    return [*(msgspec.structs.replace(manifest, ends=()) for manifest in healthy()), archive]


def _failure_without_end() -> list[Manifest]:
    """The payment asks for a second card and never says how that went."""
    payment = healthy()[1]
    ask = Step(name="ask_again", handles=("card-refused",), changes_nothing=True)
    steps = tuple(
        msgspec.structs.replace(step, fails_with=("payment-declined", "card-refused"))
        if step.name == "take_payment"
        else step
        for step in payment.steps
    )
    return replace_manifest("payment", steps=(*steps, ask))


def _with_points_before_packing() -> list[Manifest]:
    award = Step(
        name="award_points",
        handles=("payment-taken",),
        emits=("points-awarded",),
        compensation=Compensation(name="revoke_points"),
    )
    roll_back = Step(name="roll_back", handles=("order-cancelled",), rolls_back=True, changes_nothing=True)
    loyalty = Manifest(service="loyalty", source="https://loyalty.example", steps=(award, roll_back))
    manifests = replace_step("warehouse", "dispatch", handles=("goods-packed",), likely_to_fail=True)
    pack = Step(name="pack", handles=("points-awarded",), emits=("goods-packed",), changes_nothing=True)
    return [*manifests, loyalty, Manifest(service="packing", source="https://packing.example", steps=(pack,))]


def _cancelled_by_another_service() -> list[Manifest]:
    """Payment sets the deadline, Orders thinks it cancels it."""
    orders, payment, warehouse = healthy()
    take, roll_back = payment.steps
    return [
        msgspec.structs.replace(orders, steps=orders.steps[1:]),
        msgspec.structs.replace(payment, steps=(msgspec.structs.replace(take, sets=(OVERDUE,)), roll_back)),
        warehouse,
    ]


def _step_after_the_cancelling() -> list[Manifest]:
    return [
        *replace_manifest("orders", ends=("order-cancelled", "invoice-sent")),
        Manifest(
            service="invoices",
            source="https://invoices.example",
            steps=(Step(name="invoice", handles=("order-completed",), emits=("invoice-sent",)),),
        ),
    ]


PLANTED = [
    Planted(
        "an event nobody handles",
        lambda: replace_step("payment", "take_payment", emits=("payment-taken", "fraud-suspected")),
        {("SP001", "fraud-suspected")},
    ),
    Planted(
        "a handler nobody feeds",
        lambda: replace_step("warehouse", "dispatch", handles=("payment-taken", "stock-counted")),
        {("SP002", "dispatch")},
    ),
    Planted(
        "a step without compensation",
        lambda: replace_step("payment", "take_payment", compensation=None),
        {("SP003", "take_payment"), ("SP013", "payment-refunded")},
    ),
    Planted("a saga without deadline", _without_deadline, {("SP004", "order-placed")}),
    Planted("a saga without end", _without_ends, {("SP005", "order-placed"), ("SP012", "archive")}),
    Planted("a failure without end", _failure_without_end, {("SP005", "card-refused")}),
    Planted(
        "a cycle through results",
        lambda: replace_step("warehouse", "dispatch", emits=("goods-dispatched", "order-placed")),
        {("SP006", "take_payment")},
    ),
    Planted(
        "a cycle through a failure",
        lambda: replace_step("payment", "take_payment", handles=("order-placed", "item-missing")),
        {("SP006", "take_payment")},
    ),
    Planted(
        "two services that disagree about a type",
        lambda: replace_manifest(
            "payment",
            schemas={
                "order-placed": {
                    "type": "object",
                    "properties": {"order_id": {"type": "integer"}, "amount": {"type": "number"}},
                    "required": ["order_id", "amount"],
                }
            },
        ),
        {("SP007", "order-placed")},
    ),
    Planted("points before what is likely to fail", _with_points_before_packing, {("SP008", "award_points")}),
    Planted(
        "a deadline nobody cancels",
        lambda: [
            msgspec.structs.replace(
                manifest, steps=tuple(msgspec.structs.replace(step, cancels=()) for step in manifest.steps)
            )
            for manifest in healthy()
        ],
        {("SP009", "watch"), ("SP003", "complete")},
    ),
    Planted(
        "a deadline that another service would cancel",
        _cancelled_by_another_service,
        {("SP009", "take_payment"), ("SP011", "complete"), ("SP011", "cancel"), ("SP003", "complete")},
    ),
    Planted(
        "a compensation nothing triggers",
        lambda: replace_step("payment", "roll_back", handles=("order-completed",)),
        {("SP010", "take_payment")},
    ),
    Planted(
        "a misspelt deadline",
        lambda: replace_step("orders", "cancel", cancels=("fulfill",)),
        {("SP011", "cancel")},
    ),
    Planted("a step no deadline waits for", _step_after_the_cancelling, {("SP012", "invoice")}),
    Planted(
        "an end nobody publishes",
        lambda: replace_manifest("orders", ends=("order-completed", "order-cancelled", "order-canceled")),
        {("SP013", "order-canceled")},
    ),
    Planted("a failure that undoes another step", _counted_beside_a_failure, {("SP014", "take_payment")}),
]


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_each_planted_mistake_is_found_where_it_is_and_nothing_else(planted: Planted) -> None:
    """Every rule sees its mistake and names the step or event; what is still right is left alone."""
    findings = lint(Choreography(planted.manifests()))
    assert {(finding.code, finding.subject) for finding in findings} == planted.found
    assert all(finding.message.endswith(".") for finding in findings)


def test_every_rule_has_a_planted_mistake() -> None:
    """A new rule cannot be added without a choreography that it finds something in."""
    assert {code for planted in PLANTED for code, _ in planted.found} == {rule.code for rule in RULES}


def test_the_message_about_a_deadline_names_the_service_that_cannot_cancel_it() -> None:
    """The usual reason is a misunderstanding about whose deadline it is, so the message clears it up."""
    findings = lint(Choreography(_cancelled_by_another_service()))
    message = next(finding.message for finding in findings if finding.code == "SP009")
    assert "orders cancels one of that name" in message


def test_a_handler_of_a_pattern_needs_no_sayer() -> None:
    """A tracker that listens to everything is not a handler that nobody feeds."""
    tracker = Manifest(
        service="tracker",
        source="https://tracker.example",
        steps=(Step(name="fold", handles=("#",), changes_nothing=True),),
    )
    assert lint(Choreography([*healthy(), tracker])) == []


def test_a_rule_can_be_ignored_by_its_code() -> None:
    """A team that disagrees with a rule switches that rule off and keeps the others."""
    manifests = replace_step("payment", "take_payment", compensation=None)
    assert "SP003" not in {f.code for f in lint(Choreography(manifests), ignore=frozenset({"SP003"}))}


# --- acceptances ---


def test_an_accepted_finding_keeps_its_reason_and_others_of_the_code_stay_open() -> None:
    """Accepting is narrow: one step of one service, with the reason beside the finding."""
    manifests = replace_step("payment", "take_payment", compensation=None, emits=("payment-taken", "fraud-suspected"))
    reason = "the bank undoes it by itself"
    findings = lint(
        Choreography(manifests),
        acceptances=[Acceptance(code="SP003", service="payment", subject="take_payment", reason=reason)],
    )
    assert {finding.code: finding.accepted for finding in findings} == {
        "SP001": None,
        "SP003": reason,
        "SP013": None,
    }


def test_an_acceptance_that_is_no_longer_needed_is_itself_found() -> None:
    """A decision about a mistake that is gone would silently cover the next one."""
    (finding,) = lint(Choreography(healthy()), acceptances=[Acceptance(code="SP006", reason="three cards at most")])
    assert (finding.code, finding.severity) == (STALE.code, Severity.WARNING)
    assert "three cards at most" in finding.message


def test_acceptances_are_read_from_a_file(tmp_path: Path) -> None:
    """One TOML file beside the manifests holds all decisions."""
    path = tmp_path / "accepted.toml"
    path.write_text('[[accept]]\ncode = "SP004"\nreason = "the tracker watches"\nservice = "orders"\n')
    assert read_acceptances(path) == (Acceptance(code="SP004", reason="the tracker watches", service="orders"),)


@pytest.mark.parametrize(
    ("content", "emitted"),
    [
        ("[[accept]", "is no file of acceptances"),
        ('[[accept]]\ncode = "SP004"\n', "reason"),
        ('[[accept]]\ncode = "SP004"\nreason = " "\n', "without a reason"),
        ('[[accept]]\ncode = "SP999"\nreason = "why not"\n', "no rule 'SP999'"),
        ('[[accept]]\ncode = "SP004"\nreason = "x"\nstep = "y"\n', "step"),
    ],
)
def test_a_broken_file_of_acceptances_is_refused(tmp_path: Path, content: str, emitted: str) -> None:
    """A decision without a reason, or about a rule that does not exist, is not taken for one."""
    path = tmp_path / "accepted.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=emitted) as caught:
        read_acceptances(path)
    assert "accepted.toml" in str(caught.value)


# --- types ---


@pytest.mark.parametrize(
    ("emitted", "handled", "problems"),
    [
        (
            {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}},
            {"type": "object", "properties": {}},
            0,
        ),
        ({"type": "integer"}, {"type": "number"}, 0),
        ({"type": "number"}, {"type": "integer"}, 1),
        ({"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["b"]}, 1),
        ({"type": "object", "properties": {"a": {}}}, {"type": "object", "required": ["a"]}, 1),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"type": "string"}, 1),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"type": "string"}}}},
            {"type": "array", "items": {"type": "integer"}},
            1,
        ),
        ({"enum": ["card", "cash"]}, {"enum": ["card", "cash", "cheque"]}, 0),
        ({"enum": ["card", "cash"]}, {"enum": ["card"]}, 1),
        ({"const": "card"}, {"enum": ["card", "cash"]}, 0),
        ({"type": "string"}, {"enum": ["card"]}, 0),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}, 1),
        ({"type": "string", "format": "uuid"}, {"type": "string"}, 0),
    ],
)
def test_schemas_conflict_only_where_the_hearer_would_break(
    emitted: dict[str, Any], handled: dict[str, Any], problems: int
) -> None:
    """A consumer that knows less is fine; one that needs more, or something else, is not."""
    assert len(conflicts(emitted, handled)) == problems
