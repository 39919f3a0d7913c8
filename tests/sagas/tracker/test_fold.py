"""The fold: what it publishes of a saga, and that order and repetition of arrivals make no difference."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from sagapost.sagas.choreography import Choreography, Manifest, Step
from sagapost.sagas.events import (
    CompensationDone,
    CompensationStuck,
    IslandStepChanged,
    RollbackRequested,
    RollbackStarted,
    RolledBack,
    TaskEnded,
    TaskOpened,
)
from sagapost.sagas.tracker import SagaState, SagaView, fold, timeline, tree
from sagapost.sagas.tracker.entries import entry_of
from sagapost.sagas.tracker.history import History
from tests.sagas.choreographies import healthy
from tests.sagas.tracker.histories import START, Story

CHOREOGRAPHY = Choreography(healthy())


def view_of(story: Story) -> SagaView:
    return fold(story.events, CHOREOGRAPHY, keys=["order_id"])[story.saga]


def test_a_saga_that_goes_well_is_completed_when_its_end_was_said() -> None:
    """Running until the end; done steps, expected steps and the running deadline on the way."""
    story = Story()
    story.says("orders", "order-placed", data={"order_id": "4711"})
    view = view_of(story)
    assert view.state is SagaState.RUNNING
    assert [(step.service, step.step) for step in view.expected] == [("payment", "take_payment")]
    assert [(deadline.name, deadline.due) for deadline in view.deadlines] == [
        ("fulfil", START + timedelta(hours=1, seconds=1))
    ]
    assert not view.is_late(START + timedelta(minutes=59))
    assert view.is_late(START + timedelta(minutes=61))
    assert view.keys == (("order_id", "4711"),)

    story = Story()
    story.completed()
    view = view_of(story)
    assert view.state is SagaState.COMPLETED
    assert [(step.service, step.step) for step in view.steps] == [
        ("payment", "take_payment"),
        ("warehouse", "dispatch"),
        ("orders", "complete"),
    ]
    assert view.expected == ()
    assert view.deadlines == ()
    assert view.ended == story.events[-1].time


def test_pitfall_38_a_saga_is_completed_when_every_expected_branch_has_ended() -> None:
    """The end was published, and a parallel branch has not answered: it runs on until that has, and then it ended."""
    services = healthy()
    points = Step(name="award", handles=("order-placed",), emits=("points-awarded",))
    services.append(Manifest(service="loyalty", source="https://loyalty.example", steps=(points,)))
    story = Story()
    story.completed()

    def view() -> SagaView:
        return fold(story.events, Choreography(services))[story.saga]

    assert view().state is SagaState.RUNNING
    assert [(step.service, step.step) for step in view().expected] == [("loyalty", "award")]
    assert view().ended is None
    awarded = story.says("loyalty", "points-awarded", cause=story.events[0])
    assert view().state is SagaState.COMPLETED
    assert view().ended == awarded.time


def test_pitfall_38_a_saga_is_not_completed_while_a_step_of_an_island_has_no_answer() -> None:
    """Also where nothing is declared of the step, as in a version of the service that the tracker does not know."""
    story = Story()
    story.completed()

    def change(state: str) -> SagaState:
        story.says("warehouse", IslandStepChanged("warehouse", "packing", "1", "insure", state, 1))
        return view_of(story).state

    assert view_of(story).state is SagaState.COMPLETED
    assert change("waiting") is SagaState.RUNNING
    assert change("done") is SagaState.COMPLETED


def test_a_service_that_announces_its_rollback_is_followed_through_it() -> None:
    """Compensating with progress, stuck where a compensation was given up, compensated at the end."""
    story = Story()
    story.says("orders", "order-placed")
    story.says("payment", "payment-taken")
    story.says("warehouse", "item-missing")
    cancelled = story.says("orders", "order-cancelled")
    story.says("payment", RollbackStarted("payment", "item missing", 2))
    story.says("payment", CompensationDone("payment", "revoke", 1))
    story.says("payment", CompensationStuck("payment", "refund", "no answer", 10))
    view = view_of(story)
    assert view.state is SagaState.STUCK
    assert view.reason == "payment: refund: no answer"
    story.says("payment", CompensationDone("payment", "refund", 0))
    assert view_of(story).state is SagaState.ROLLING_BACK
    story.says("payment", RolledBack("payment"), cause=cancelled)
    view = view_of(story)
    assert view.state is SagaState.ROLLED_BACK
    assert [(part.service, part.total, part.done) for part in view.rollbacks] == [
        ("payment", 2, ("revoke", "refund")),
        ("warehouse", 0, ()),
    ]


def test_a_service_that_announces_nothing_is_judged_by_what_its_compensations_say() -> None:
    """The refund that the choreography declares is waited for, and ends the rollback."""
    story = Story()
    story.says("orders", "order-placed")
    story.says("payment", "payment-taken")
    story.says("warehouse", "item-missing")
    story.says("orders", "order-cancelled")
    assert view_of(story).state is SagaState.ROLLING_BACK
    story.says("payment", "payment-refunded")
    view = view_of(story)
    assert view.state is SagaState.ROLLED_BACK
    assert [step.undone for step in view.steps if step.step == "take_payment"] == [True]


def test_an_open_task_waits_for_a_person_until_it_is_decided() -> None:
    """A rollback asked for past the point of no return opens a task; the decision to go on lets the saga complete."""
    story = Story()
    story.says("orders", "order-placed")
    story.says("payment", "payment-taken")
    story.says("sagapost", RollbackRequested("customer called", "kim"))
    story.says("payment", TaskOpened("payment", 3, "rollback-past-pivot", "Roll back?", ("go-on",)))
    story.says("warehouse", RollbackStarted("warehouse", "customer called", 0))
    view = view_of(story)
    assert (view.state, view.tasks[0].task) == (SagaState.WAITING, 3)
    story.says("payment", TaskEnded("payment", 3, "rollback-past-pivot", "resolved", "go-on", "kim"))
    assert [rollback.service for rollback in view_of(story).rollbacks] == ["warehouse"]


def test_text_shows_what_happened_and_what_is_open() -> None:
    """The timeline names who said what and who is late; the tree shows causes."""
    story = Story()
    placed = story.says("orders", "order-placed", data={"order_id": "4711"})
    story.says("payment", "payment-taken")
    story.says("loyalty", "points-awarded", cause=placed)
    view = view_of(story)
    text = timeline(view, now=START + timedelta(hours=3))
    assert "saga order-4711  running" in text
    assert "order_id=4711" in text
    assert "● payment  payment-taken" in text
    assert "orders: fulfil, late by" in text
    assert "expected   warehouse: dispatch, after payment-taken" in text
    assert tree(view).splitlines()[1:] == [
        "└─ order-placed (orders)",
        "   ├─ payment-taken (payment)",
        "   └─ points-awarded (loyalty)",
    ]


EVENTS = (
    ("orders", "order-placed"),
    ("payment", "payment-taken"),
    ("payment", "payment-declined"),
    ("warehouse", "goods-dispatched"),
    ("warehouse", "item-missing"),
    ("orders", "order-cancelled"),
    ("orders", "order-completed"),
    ("payment", "payment-refunded"),
    ("payment", RollbackStarted("payment", "why", 1)),
    ("payment", CompensationDone("payment", "refund", 0)),
    ("payment", CompensationStuck("payment", "refund", "no answer", 3)),
    ("payment", RolledBack("payment")),
    ("orders", TaskOpened("orders", 1, "call", "Call the customer", ("done",))),
    ("orders", TaskEnded("orders", 1, "call", "resolved", "done", "kim")),
)


@st.composite
def stories(draw: st.DrawFn) -> Story:
    """Histories, sensible or not, whose services have clocks that may disagree."""
    story = Story()
    for service, what in draw(st.lists(st.sampled_from(EVENTS), min_size=1, max_size=14)):
        cause = draw(st.sampled_from(story.events)) if story.events else None
        story.says(service, what, cause=cause, after=timedelta(seconds=draw(st.integers(-3, 3))))
    return story


@settings(max_examples=60, deadline=None)
@given(stories(), st.data())
def test_any_order_and_repetition_of_arrivals_folds_to_the_same(story: Story, data: st.DataObject) -> None:
    """The view after a shuffled, duplicated history equals the view after the history as it was said."""
    shuffled = data.draw(st.permutations(story.events + data.draw(st.lists(st.sampled_from(story.events)))))
    assert fold(shuffled, CHOREOGRAPHY) == fold(story.events, CHOREOGRAPHY)


@settings(max_examples=60, deadline=None)
@given(stories(), st.integers(1, 8), st.data())
def test_a_history_that_is_cut_forgets_the_same_whatever_the_order(
    story: Story, limit: int, data: st.DataObject
) -> None:
    """Merged piece by piece in any order, with repetitions, a bounded history keeps the same events."""
    entries = [entry_of(event) for event in story.events]
    whole = History().merge(entries, limit=limit)
    pieces = History()
    for entry in data.draw(st.permutations(entries + entries[:3])):
        pieces = pieces.merge([entry], limit=limit)
    assert pieces == whole
    assert whole.merge(entries, limit=limit) is whole
    assert (len(whole.entries), whole.truncated) == (min(limit, len(entries)), len(entries) > limit)
