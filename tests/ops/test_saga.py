"""`sagapost saga`: export, draw and check a choreography from the command line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from sagapost.ops.commands import app
from sagapost.sagas.choreography import Manifest, Step, read_manifest, write_manifest

runner = CliRunner()


@pytest.fixture
def manifests(tmp_path: Path) -> list[str]:
    """Two services; what the second says, nobody hears."""
    parts = [
        Manifest(
            service="orders",
            source="https://orders.example",
            starts=("order-placed",),
            ends=("order-confirmed",),
            steps=(Step(name="confirm", hears=("stock-reserved",), emits=("order-confirmed",), changes_nothing=True),),
        ),
        Manifest(
            service="warehouse",
            source="https://warehouse.example",
            steps=(Step(name="reserve", hears=("order-placed",), emits=("stock-reserved", "stock-low")),),
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
    result = runner.invoke(app, ["saga", "manifest", "examples.streamtech.warehouse:inbox"])
    assert result.exit_code == 0
    path = tmp_path / "warehouse.json"
    path.write_bytes(result.stdout_bytes)
    assert [step.name for step in read_manifest(path).steps] == ["reserve"]


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
    """A build that runs the lint stops at an event nobody hears."""
    result = runner.invoke(app, ["saga", "lint", *manifests, "--json"])
    assert result.exit_code == 1
    findings = msgspec.json.decode(result.stdout)
    assert ("SP001", "stock-low") in {(finding["code"], finding["subject"]) for finding in findings}


def test_lint_passes_when_the_rest_is_ignored(manifests: list[str]) -> None:
    """Rules are switched off by code; warnings alone do not fail a build unless asked to."""
    ignored = [argument for code in ("SP001", "SP003") for argument in ("--ignore", code)]
    assert runner.invoke(app, ["saga", "lint", *manifests, *ignored]).exit_code == 0
    assert runner.invoke(app, ["saga", "lint", *manifests, *ignored, "--strict"]).exit_code == 1
