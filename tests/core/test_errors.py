"""The error tree: as drawn, and each error a sentence with its data on it."""

from __future__ import annotations

import inspect
import re

import pytest

from sagapost.core import errors
from sagapost.core.errors import SagapostError

LINE = re.compile(r"^(?P<indent>[│ ]*)(?:[├└]── )?(?P<name>[A-Z]\w+)", re.MULTILINE)


def drawn() -> dict[str, str | None]:
    """Read the tree in the module's docstring: the parent of each name."""
    assert errors.__doc__ is not None
    tree = errors.__doc__.split("::\n", 1)[1].split("\n\nAttributes", 1)[0]
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in filter(str.strip, tree.splitlines()):
        found = LINE.match(line.removeprefix("    "))
        assert found, f"not a line of a tree: {line!r}"
        depth = len(found["indent"]) // 4 + ("── " in line)
        path[depth:] = [found["name"]]
        parents[found["name"]] = path[depth - 1] if depth else None
    return parents


def defined() -> dict[str, str | None]:
    """The parent of each error class in the module."""
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, SagapostError)]
    return {cls.__name__: None if cls is SagapostError else cls.__base__.__name__ for cls in classes if cls.__base__}


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    """Every error drawn exists below the parent it is drawn under, and every error that exists is drawn."""
    assert drawn() == defined()
    assert len(drawn()) > 15


def test_a_missing_extra_names_what_to_install() -> None:
    """The reader can copy the command."""
    error = errors.MissingExtraError(module="asyncpg", extra="postgresql", purpose="PostgreSQLOutboxStore")
    assert (error.module, error.extra) == ("asyncpg", "postgresql")
    assert "pip install 'sagapost[postgresql]'" in str(error)


@pytest.mark.parametrize(
    ("found", "says", "remedy"),
    [
        pytest.param(None, "has no sagapost tables", "sagapost db upgrade", id="no tables"),
        pytest.param(1, "schema version 1, this release needs 2", "sagapost db upgrade", id="older"),
        pytest.param(3, "schema version 3, this release needs 2", "Upgrade the sagapost package", id="newer"),
    ],
)
def test_a_wrong_schema_names_the_way_out(found: int | None, says: str, remedy: str) -> None:
    """An old database is upgraded; a database newer than the package asks for a newer package instead."""
    text = str(errors.SchemaError(found=found, expected=2, where="orders at db.example"))
    assert says in text
    assert remedy in text
    assert "orders at db.example" in text


def test_a_topology_conflict_names_entity_and_argument() -> None:
    """Which queue, which argument, what was left alone."""
    error = errors.TopologyConflictError(
        entity="queue", name="warehouse", argument="x-queue-type", detail="classic there, quorum here"
    )
    assert (error.entity, error.name, error.argument) == ("queue", "warehouse", "x-queue-type")
    for part in ("'warehouse'", "x-queue-type", "classic there, quorum here", "left untouched"):
        assert part in str(error)


def test_a_lost_lease_says_that_nothing_is_lost() -> None:
    """The partitions are listed in order, and the reader need not worry."""
    error = errors.LeaseLostError(partitions=frozenset({7, 3}))
    assert error.partitions == {3, 7}
    assert "[3, 7]" in str(error)
    assert "Nothing is lost" in str(error)


def test_an_oversized_event_gives_both_sizes() -> None:
    """Size and limit are readable numbers and attributes."""
    error = errors.EventTooLargeError(event_type="t", size=2_000_000, limit=1_048_576)
    assert (error.size, error.limit) == (2_000_000, 1_048_576)
    assert "2,000,000" in str(error)
    assert "1,048,576" in str(error)
