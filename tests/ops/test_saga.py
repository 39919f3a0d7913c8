"""`sagapost saga`: export, draw and check a choreography from the command line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from sagapost.core.errors import ConfigurationError
from sagapost.ops.commands import app
from sagapost.sagas.choreography import RULES, STALE, LintRule, Manifest, Step, read_manifest, write_manifest

runner = CliRunner()


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    """Two services; what the second publishes, nobody handles."""
    parts = [
        Manifest(
            service="orders",
            source="https://orders.example",
            starts=("order-placed",),
            ends=("order-confirmed",),
            steps=(
                Step(name="confirm", handles=("stock-reserved",), emits=("order-confirmed",), changes_nothing=True),
            ),
        ),
        Manifest(
            service="warehouse",
            source="https://warehouse.example",
            steps=(Step(name="reserve", handles=("order-placed",), emits=("stock-reserved", "stock-low")),),
        ),
    ]
    paths: list[str] = []
    for part in parts:
        path = tmp_path / f"{part.service}.json"
        path.write_bytes(write_manifest(part))
        paths.append(str(path))
    return paths


def test_manifest_of_an_importable_inbox(tmp_path: Path) -> None:
    """What is exported from code can be read back by `map` and `lint`."""
    result = runner.invoke(app, ["saga", "manifest", "examples.streamtech.warehouse:service"])
    assert result.exit_code == 0
    path = tmp_path / "warehouse.json"
    path.write_bytes(result.stdout_bytes)
    assert "reserve" in {step.name for step in read_manifest(path).steps}


@pytest.mark.parametrize(
    ("format_", "begins"),
    [
        ("mermaid", "flowchart LR"),
        ("dot", "digraph"),
        ("svg", "<svg"),
        ("bpmn", "<?xml"),
        ("asyncapi", "{"),
    ],
)
def test_map_draws_in_every_format(manifests: list[str], format_: str, begins: str) -> None:
    """Each format is written to standard output, ready for a file."""
    result = runner.invoke(app, ["saga", "map", *manifests, "--format", format_])
    assert result.exit_code == 0
    assert result.stdout.startswith(begins)
    assert "order-placed" in result.stdout or "order placed" in result.stdout


def test_lint_fails_on_errors_and_names_them(manifests: list[str]) -> None:
    """A build that runs the lint stops at an event nobody handles."""
    result = runner.invoke(app, ["saga", "lint", *manifests, "--json"])
    assert result.exit_code == 1
    findings = msgspec.json.decode(result.stdout)
    assert ("SP001", "stock-low") in {(finding["code"], finding["subject"]) for finding in findings}


def ignoring(*codes: str) -> list[str]:
    """Return the options that leave rules out."""
    return [argument for code in codes for argument in ("--ignore", code)]


@pytest.mark.parametrize(
    ("fail_on", "ignored", "status"),
    [
        ("error", [], 1),
        ("never", [], 0),
        ("error", ["SP001"], 0),
        ("warning", ["SP001"], 1),
        ("warning", ["SP001", "SP004"], 0),
        ("advice", ["SP001", "SP004"], 0),
    ],
)
def test_what_fails_the_lint_is_chosen(manifests: list[str], fail_on: str, ignored: list[str], status: int) -> None:
    """The build fails from the chosen severity on: here an error (SP001) and a warning (SP004) are to be found."""
    result = runner.invoke(app, ["saga", "lint", *manifests, "--fail-on", fail_on, *ignoring(*ignored)])
    assert result.exit_code == status, result.output


def test_accepted_findings_pass_and_stay_visible_to_programs(manifests: list[str], tmp_path: Path) -> None:
    """What the team lives with does not fail the build, is not shown to people, and keeps its reason in the JSON."""
    path = tmp_path / "accepted.toml"
    path.write_text(
        '[[accept]]\ncode = "SP001"\nsubject = "stock-low"\nreason = "purchasing listens"\n'
        '[[accept]]\ncode = "SP004"\nreason = "watched by the tracker"\n'
    )
    lint = ["saga", "lint", *manifests, "--accept", str(path), "--fail-on", "advice"]
    result = runner.invoke(app, lint)
    assert result.exit_code == 0, result.output
    assert result.stdout == "2 services, 2 steps: nothing to complain about (2 accepted)\n"
    findings = msgspec.json.decode(runner.invoke(app, [*lint, "--json"]).stdout)
    assert {finding["code"]: finding["accepted"] for finding in findings} == {
        "SP001": "purchasing listens",
        "SP004": "watched by the tracker",
    }


@pytest.mark.parametrize("rule", [*RULES, STALE], ids=lambda rule: rule.code)
def test_every_rule_explains_itself(rule: LintRule) -> None:
    """Whoever meets a code in a build's output finds out what it means without leaving the terminal."""
    result = runner.invoke(app, ["saga", "lint", "--explain", rule.code.lower()])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{rule.code} ({rule.severity.value}): {rule.title}\n")
    said = " ".join(result.stdout.split())
    assert rule.explanation in said
    assert rule.remedy in said


def test_the_rules_can_be_listed() -> None:
    """One line a rule, in the order of the codes."""
    lines = runner.invoke(app, ["saga", "lint", "--rules"]).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [rule.code for rule in RULES]


@pytest.mark.parametrize("option", ["--explain", "--ignore"])
def test_a_code_that_does_not_exist_is_refused(manifests: list[str], option: str) -> None:
    """A misspelt code is not taken for one that finds nothing."""
    result = runner.invoke(app, ["saga", "lint", *manifests, option, "SP999"])
    assert isinstance(result.exception, ConfigurationError)
    assert "--rules" in str(result.exception)


def test_lint_without_manifests_says_what_to_name() -> None:
    """Nothing to check is a mistake in the build's script, not a clean choreography."""
    result = runner.invoke(app, ["saga", "lint"])
    assert result.exit_code == 2
    assert "Name the manifests" in result.output
