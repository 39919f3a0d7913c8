"""The benchmark command: what it accepts, how runs are compared, and the JSON that it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from benchmarks import __main__ as command
from benchmarks.harness import Bench, Figure, NotHereError, interleave

# --- figures ---


def test_the_ratio_is_the_median_of_the_runs_own_ratios() -> None:
    """A slow phase of the machine that hits a run and its baseline alike changes the ratio of neither."""
    figure = Figure.of("x.y", "us", [10.0, 100.0, 12.0], [5.0, 50.0, 4.0])
    assert (figure.value, figure.baseline, figure.ratio, figure.runs) == (12.0, 5.0, 2.0, 3)


def test_a_figure_may_stand_alone() -> None:
    """Then there is nothing to divide by."""
    figure = Figure.of("x.mib", "MiB", [3.0, 1.0])
    assert (figure.value, figure.baseline, figure.ratio, figure.runs) == (2.0, None, None, 2)


def test_runs_that_cannot_be_compared_are_refused() -> None:
    """Another number of baselines than of values, or no value at all."""
    with pytest.raises(ValueError, match="zip"):
        Figure.of("x.y", "us", [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"x\.y has no runs"):
        Figure.of("x.y", "us", [])


async def test_variants_run_in_turn_and_take_turns_in_being_first() -> None:
    """Three runs of three variants: each is first once."""
    order: list[str] = []

    def variant(name: str) -> Any:
        async def run() -> float:
            order.append(name)
            return float(len(order))

        return run

    results = await interleave(Bench(console=Console(quiet=True)), "x", {n: variant(n) for n in "abc"}, runs=3)
    assert "".join(order) == "abcbcacab"
    assert results["a"] == [1.0, 6.0, 8.0]


# --- the command ---


async def _measure(bench: Bench) -> list[Figure]:
    return [
        Figure.of("fake.one", "us", [float(bench.pick(1, 2))] * 3, [2.0] * 3),
        Figure.of("fake.two", "MiB", [5.0]),
    ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """One benchmark that takes no time."""
    module = SimpleNamespace(FIGURES=("fake.one", "fake.two"), measure=_measure)
    monkeypatch.setattr(command, "NAMES", ("fake",))

    def load(_names: Sequence[str]) -> dict[str, Any]:
        return {"fake": module}

    monkeypatch.setattr(command, "load", load)


@pytest.mark.usefixtures("fake")
def test_json_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine and every figure, while the table is for the person."""
    target = tmp_path / "figures.json"
    command.main(["fake", "--quick", "--json", str(target)])
    written = json.loads(target.read_text())
    assert set(written) == {"machine", "figures"}
    assert {"cpu", "cores", "python", "packages"} <= set(written["machine"])
    assert written["figures"] == [
        {"name": "fake.one", "value": 1.0, "unit": "us", "baseline": 2.0, "ratio": 0.5, "runs": 3},
        {"name": "fake.two", "value": 5.0, "unit": "MiB", "baseline": None, "ratio": None, "runs": 1},
    ]
    assert "fake.one" in capsys.readouterr().out


@pytest.mark.usefixtures("fake")
def test_json_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """So that it can be piped; one figure is picked by its name."""
    command.main(["all", "--json", "-", "--only", "fake.two"])
    output = capsys.readouterr()
    assert [figure["name"] for figure in json.loads(output.out)["figures"]] == ["fake.two"]
    assert "fake.two" in output.err


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("arguments", [[], ["nothing"], ["fake", "--only", "fake.three"]])
def test_what_does_not_exist_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, and the names there are."""
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert "fake" in capsys.readouterr().err


def test_what_cannot_be_run_here_is_skipped_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others go on; alone it is a failure."""

    async def missing(_bench: Bench) -> list[Figure]:
        raise NotHereError("Install the other library.")

    modules = {
        "fake": SimpleNamespace(FIGURES=("fake.one", "fake.two"), measure=_measure),
        "missing": SimpleNamespace(FIGURES=("missing.one",), measure=missing),
    }
    monkeypatch.setattr(command, "NAMES", tuple(modules))

    def load(names: Sequence[str]) -> dict[str, Any]:
        return {name: modules[name] for name in names}

    monkeypatch.setattr(command, "load", load)
    command.main(["missing", "fake"])
    assert "missing: skipped. Install the other library." in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        command.main(["missing"])
