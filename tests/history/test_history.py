"""The checker finds every fault that is planted, names it, and finds none where there is none."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.history.history import Cause, History, Reordering
from tests.history.records import Recorder, replay


def good_run(count: int = 10, *, versions: bool = True) -> History:
    """Events of one key, each committed before the next is inserted; nothing seen yet."""
    history = History()
    for number in range(count):
        version = number if versions else None
        history.wrote(number, key="k", version=version, inserted=float(number))
        history.committed(number, at=number + 0.5)
    return history


def see(history: History, *events: int) -> History:
    """See events, one after the other."""
    for place, event in enumerate(events):
        history.saw(event, at=100.0 + place)
    return history


def test_a_good_run_is_clean() -> None:
    """Everything committed, seen once and in order."""
    report = see(good_run(), *range(10)).judge()
    assert report.clean
    assert (report.committed, report.seen, report.rolled_back) == (10, 10, 0)
    assert report.duplicates == Counter()


def test_a_lost_event_is_named() -> None:
    """Committed and never seen."""
    report = see(good_run(), *(n for n in range(10) if n != 4)).judge()
    assert report.lost == (4,)
    assert not report.clean


def test_a_rolled_back_event_that_is_seen_is_named() -> None:
    """And one that nobody wrote at all."""
    history = good_run(3)
    history.wrote(50, key="k", inserted=9.0)
    history.rolled_back(50)
    report = see(history, 0, 1, 2, 50, 99).judge()
    assert report.unexpected == (50, 99)
    assert report.rolled_back == 1
    assert not report.clean


def test_a_rolled_back_event_that_is_not_seen_is_fine() -> None:
    """That is what a rollback is for."""
    history = good_run(1)
    history.wrote(50, key="k", inserted=9.0)
    history.rolled_back(50)
    assert see(history, 0).judge().clean


@pytest.mark.parametrize("versions", [True, False], ids=["by-version", "by-time"])
def test_a_swap_is_found(*, versions: bool) -> None:
    """By either kind of order; named with both events."""
    report = see(good_run(versions=versions), 0, 1, 3, 2, *range(4, 10)).judge()
    assert report.reordered == (Reordering("k", first=2, second=3),)
    assert not report.clean


def test_one_late_event_is_one_finding() -> None:
    """Not one for each event that overtook it."""
    report = see(good_run(), *range(1, 10), 0).judge()
    assert [found.first for found in report.reordered] == [0]


def test_concurrent_events_have_no_order() -> None:
    """Inserted while the other was not committed: either way round is right. So are events of different keys."""
    for order in ((1, 2), (2, 1)):
        history = History()
        history.wrote(1, key="k", inserted=1.0)
        history.wrote(2, key="k", inserted=2.0)
        history.committed(1, at=3.0)
        history.committed(2, at=4.0)
        assert see(history, *order).judge().clean
    other = History()
    for number, key in ((1, "a"), (2, "b"), (3, None), (4, None)):
        other.wrote(number, key=key, inserted=float(number))
        other.committed(number, at=number + 0.1)
    assert see(other, 4, 3, 2, 1).judge().clean


def test_a_late_commit_of_an_early_insert_may_come_last() -> None:
    """It was inserted first and committed last; what it overtook or not is no matter of order."""
    history = History()
    history.wrote(1, key="k", inserted=1.0)
    for number in (2, 3):
        history.wrote(number, key="k", inserted=float(number))
        history.committed(number, at=number + 0.1)
    history.committed(1, at=10.0)
    assert see(history, 2, 3, 1).judge().clean


def test_order_is_judged_against_all_that_came_before() -> None:
    """A concurrent event in between must not hide a swap behind it."""
    history = History()
    history.wrote(1, key="k", inserted=1.0)
    history.committed(1, at=2.0)
    history.wrote(2, key="k", inserted=5.0)
    history.committed(2, at=6.0)
    history.wrote(3, key="k", inserted=1.5)
    history.committed(3, at=7.0)
    report = see(history, 2, 3, 1).judge()
    assert report.reordered == (Reordering("k", first=1, second=2),)


def test_order_counts_from_the_first_sighting() -> None:
    """A duplicate that comes late is a duplicate, not a reordering."""
    report = see(good_run(3), 0, 1, 0, 2, 1).judge()
    assert report.clean
    assert report.duplicates.total() == 2


def test_a_rolled_back_version_is_used_again() -> None:
    """The next transaction counts from the same version: only the committed one takes part."""
    history = History()
    history.wrote(1, key="k", version=5, inserted=1.0)
    history.rolled_back(1)
    history.wrote(2, key="k", version=5, inserted=2.0)
    history.committed(2, at=3.0)
    assert see(history, 2).judge().clean


def test_duplicates_are_put_down_to_the_latest_fault() -> None:
    """The broker's own word first; then the fault before it, for a while; else it is unexplained."""
    history = good_run(4)
    see(history, 0, 1, 2, 3)
    history.saw(0, at=105.0)
    history.fault(Cause.RELAY_KILLED, at=110.0)
    history.saw(0, at=111.0)
    history.saw(1, at=112.0, redelivered=True)
    history.fault(Cause.CONNECTION_LOST, at=113.0)
    history.saw(2, at=114.0)
    history.saw(2, at=115.0)
    history.fault(Cause.SERVER_RESTARTED, at=120.0)
    history.saw(3, at=149.0)
    history.saw(3, at=151.0)
    assert history.judge().duplicates == {
        Cause.UNEXPLAINED: 2,
        Cause.RELAY_KILLED: 1,
        Cause.REDELIVERED: 1,
        Cause.CONNECTION_LOST: 2,
        Cause.SERVER_RESTARTED: 1,
    }


def test_doubt_must_be_resolved() -> None:
    """A commit whose answer got lost is neither committed nor rolled back until the database was asked."""
    history = good_run(1)
    for number in (7, 8):
        history.wrote(number, key="k", inserted=float(number))
        history.in_doubt(number)
    with pytest.raises(ValueError, match="2 events are in doubt"):
        history.judge()
    history.resolve({7})
    report = see(history, 0).judge()
    assert report.lost == (7,)
    assert report.rolled_back == 1


def test_an_event_in_doubt_is_nobodys_cause() -> None:
    """Nobody was told of its commit, so nothing was written because of it."""
    history = History()
    history.wrote(1, key="k", inserted=1.0)
    history.in_doubt(1)
    history.wrote(2, key="k", inserted=5.0)
    history.committed(2, at=6.0)
    history.resolve({1})
    assert see(history, 2, 1).judge().clean


def test_numbers_are_used_once() -> None:
    """Two events of one number could hide each other's loss."""
    history = good_run(1)
    with pytest.raises(ValueError, match="event 0 was written before"):
        history.wrote(0, key="k", inserted=1.0)


def test_the_report_reads_as_a_table() -> None:
    """Counts, a few examples of each fault, duplicates by cause."""
    history = see(good_run(8), 1, 0, 3, 3)
    history.saw(99, at=200.0)
    text = str(history.judge())
    assert "lost                 5   2, 4, 5, ..." in text
    assert "unexpected           1   99" in text
    assert "Reordering(key='k', first=0, second=1)" in text
    assert "no fault explains it" in text


@given(st.data())
def test_planted_faults_are_counted_exactly(data: st.DataObject) -> None:
    """Whatever the mixture: as many lost, invented and doubled as were planted; and nothing was swapped."""
    count = data.draw(st.integers(1, 60))
    keys = data.draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    fate = data.draw(
        st.lists(st.sampled_from(["seen", "lost", "undone", "undone-seen"]), min_size=count, max_size=count)
    )
    twice = data.draw(st.sets(st.integers(0, count - 1)))
    history = History()
    versions: Counter[str] = Counter()
    for number in range(count):
        history.wrote(number, key=keys[number], version=versions[keys[number]], inserted=float(number))
        if fate[number].startswith("undone"):
            history.rolled_back(number)
        else:
            history.committed(number, at=number + 0.5)
            versions[keys[number]] += 1
    visible = [number for number in range(count) if fate[number] in {"seen", "undone-seen"}]
    for number in visible:
        history.saw(number, at=1_000.0 + number)
    for number in twice & set(visible):
        history.saw(number, at=5_000.0)
    report = history.judge()
    assert len(report.lost) == fate.count("lost")
    assert len(report.unexpected) == fate.count("undone-seen")
    assert report.duplicates.total() == len(twice & set(visible))
    assert report.reordered == ()


@given(st.permutations(range(8)))
def test_a_run_is_in_order_if_and_only_if_nothing_was_swapped(order: list[int]) -> None:
    """Every permutation of a causal chain but one is out of order."""
    for versions in (True, False):
        report = see(good_run(8, versions=versions), *order).judge()
        assert (report.reordered == ()) == (order == sorted(order))


def test_two_hundred_thousand_events_fit() -> None:
    """In memory and in time."""
    rng = random.Random(1)
    started = time.perf_counter()
    tracemalloc.start()
    history = History()
    versions: Counter[str] = Counter()
    for number in range(50_000):
        key = f"key-{rng.randrange(1_000)}"
        history.wrote(number, key=key, version=versions[key], inserted=float(number))
        history.committed(number, at=number + 0.5)
        history.saw(number, at=number + 1.0)
        versions[key] += 1
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert history.judge().clean
    assert used / 50_000 < 400, "bytes per event"
    assert time.perf_counter() - started < 20


def test_records_carry_the_account_between_processes(tmp_path: Path) -> None:
    """What a writer noted is what the judge reads."""
    with Recorder(tmp_path / "writer-1") as record:
        record.wrote(1, key="k", version=None, inserted=1.5)
        record.committed(1, at=2.5)
        record.wrote(2, key=None, version=7, inserted=3.5)
        record.rolled_back(2)
        record.wrote(3, key="k", version=8, inserted=4.5)
        record.in_doubt(3)
    history = History()
    replay(tmp_path / "writer-1", history)
    history.resolve({3})
    report = see(history, 1, 2).judge()
    assert (report.committed, report.rolled_back) == (2, 1)
    assert (report.lost, report.unexpected) == ((3,), (2,))


def test_a_damaged_record_is_an_error(tmp_path: Path) -> None:
    """Never a run that looks better than it was."""
    (tmp_path / "writer-1").write_bytes(b'["wrote", 1, "k"]\n')
    with pytest.raises(ValueError, match="a step of no known kind"):
        replay(tmp_path / "writer-1", History())
