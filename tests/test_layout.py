"""The rules of the checkout that no other tool enforces."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRONT = ROOT / "front" / "sagapost"
PORTIONS = ("core", "outbox", "inbox", "sagas", "service", "adapters", "ops")
LIBRARY = [FRONT / "__init__.py", *sorted(path for portion in PORTIONS for path in (ROOT / portion).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
AROUND = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
MODULES = [*LIBRARY, *TESTS, *AROUND]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])

LONGEST = 60
LONGER_FOR_A_REASON = frozenset(
    {
        "inbox/sagapost/inbox/running/assembly.py assemble",
        "inbox/sagapost/inbox/declared/inbox.py on",
        "sagas/sagapost/sagas/orchestration/island.py step",
    }
)
"""Functions over the limit that are to become shorter. Those that declare tables or statements may be as long as
these are."""
DECLARATIONS = ("tables.py", "statements.py")


def name_of(path: Path) -> str:
    """Return the path as shown in test ids and messages."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    """Parse a module."""
    return ast.parse(path.read_text(), filename=name_of(path))


def dotted(path: Path) -> str:
    """Return the import name of a library module."""
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# --- the package and its portions ---


def test_one_root_holds_the_package_and_the_others_its_portions() -> None:
    """`front` alone has `sagapost/__init__.py`; one in any other root would hide all but that (docs/adr/0013)."""
    assert (FRONT / "__init__.py").is_file()
    assert [root for root in PORTIONS if (ROOT / root / "sagapost" / "__init__.py").exists()] == []
    assert [root for root in ("front", *PORTIONS) if (ROOT / root / "__init__.py").exists()] == []


def test_the_front_holds_its_init_and_a_link_to_each_portion() -> None:
    """pyright and import-linter look no further than the first `sagapost/__init__.py`, and find all of it there."""
    held = {path.name: path for path in FRONT.iterdir() if path.name != "__pycache__"}
    assert set(held) == {"__init__.py", "py.typed", *PORTIONS}
    wrong = [
        portion for portion in PORTIONS if held[portion].resolve() != (ROOT / portion / "sagapost" / portion).resolve()
    ]
    assert wrong == []


@pytest.mark.parametrize("portion", PORTIONS)
def test_each_root_holds_its_own_portion_and_is_typed(portion: str) -> None:
    """`core/` holds `sagapost.core` and nothing else, marked as typed for the users' type checkers.

    But `python -m sagapost`, which is the command line's, has to be in the namespace itself.
    """
    held = {path.name for path in (ROOT / portion / "sagapost").iterdir() if path.name != "__pycache__"}
    assert held == ({portion, "__main__.py"} if portion == "ops" else {portion})
    assert (ROOT / portion / "sagapost" / portion / "py.typed").exists()


def test_every_tool_knows_the_same_roots() -> None:
    """Build, type checkers, linter and import contracts list the same roots."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    portions, roots = list(PORTIONS), ["front", *PORTIONS]
    front = ["front/sagapost/__init__.py", "front/sagapost/py.typed"]
    targets = project["hatch"]["build"]["targets"]
    assert project["hatch"]["build"]["dev-mode-dirs"] == roots
    assert targets["wheel"]["sources"] == roots
    assert targets["wheel"]["only-include"] == [*front, *(f"{root}/sagapost" for root in portions)]
    assert {*front, *portions} <= set(targets["sdist"]["only-include"])
    assert set(roots) <= set(project["mypy"]["mypy_path"])
    assert {front[0], *portions} <= set(project["mypy"]["files"])
    assert {front[0], *portions} <= set(project["pyright"]["include"])
    places = {each["root"]: each["extraPaths"] for each in project["pyright"]["executionEnvironments"]}
    assert places.pop(".") == portions
    assert places == {"front": [], **{root: ["front", "."] for root in ("examples", "tests", "benchmarks")}}
    assert set(roots) <= set(project["ruff"]["src"])
    layers = project["importlinter"]["contracts"][0]["layers"]
    assert {*layers, "sagapost.adapters"} == {f"sagapost.{portion}" for portion in portions}


# --- modules ---


def test_functions_are_short() -> None:
    """A function of more than 60 lines has a second idea in it. A module may be as long as its one idea."""
    too_long = {
        f"{name_of(path)} {node.name}"
        for path in LIBRARY
        if not path.name.endswith(DECLARATIONS)
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST
    }
    assert too_long <= LONGER_FOR_A_REASON


def test_what_is_exported_is_there_once() -> None:
    """`__all__` of every package and module names what exists in it, without repeats."""
    wrong: dict[str, list[str]] = {}
    for path in LIBRARY:
        module = importlib.import_module(dotted(path))
        exported: list[str] = getattr(module, "__all__", [])
        missing = [name for name in exported if not hasattr(module, name)]
        repeated = sorted({name for name in exported if exported.count(name) > 1})
        if missing or repeated:
            wrong[name_of(path)] = missing + repeated
    assert wrong == {}


COMMANDS = ROOT / "ops/sagapost/ops/commands/__init__.py"
"""Puts the command line together from functions and modules of the commands' names; nobody imports from it."""


def test_a_name_is_either_a_module_or_what_is_exported() -> None:
    """No package exports something under the name of one of its modules, which could then be reached by neither."""
    both: dict[str, list[str]] = {}
    for path in (path for path in LIBRARY if path.name == "__init__.py" and path != COMMANDS):
        exported: list[str] = getattr(importlib.import_module(dotted(path)), "__all__", [])
        modules = {found.stem if found.suffix == ".py" else found.name for found in path.parent.iterdir()}
        if names := sorted(modules & set(exported)):
            both[name_of(path)] = names
    assert both == {}


def _imports_of(path: Path) -> dict[str, list[str]]:
    """Return the names that a package's `__init__` imports from modules of its own, by module."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{dotted(path)}."):
            module = (node.module or "").removeprefix(f"{dotted(path)}.")
            if module == "core.lazy":
                continue  # the front stands above core, and takes the means from there
            found.setdefault(module, []).extend(alias.asname or alias.name for alias in node.names)
    return found


def test_a_package_exports_all_it_imports() -> None:
    """What a package's `__init__` imports is there for users, so `__all__` lists it."""
    forgotten: dict[str, list[str]] = {}
    for path in (path for path in LIBRARY if path.name == "__init__.py"):
        exported: list[str] = getattr(importlib.import_module(dotted(path)), "__all__", [])
        imported = [name for names in _imports_of(path).values() for name in names]
        if names := [name for name in imported if not name.startswith("_") and name not in exported]:
            forgotten[name_of(path)] = names
    assert forgotten == {}


def _lazy_names(path: Path) -> dict[str, list[str]] | None:
    """Return what a package gives lazily, by module; None if it gives nothing so."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazily":
            given: dict[str, str] = ast.literal_eval(node.args[1])
            return {module: names.split() for module, names in given.items()}
    return None


def test_lazy_names_are_those_that_type_checkers_see() -> None:
    """A package that imports late says so twice, and both say the same; no name is hidden by a module of its name."""
    lazy = {path: names for path in LIBRARY if path.name == "__init__.py" and (names := _lazy_names(path))}
    assert len(lazy) > 5
    for path, names in lazy.items():
        assert names == _imports_of(path), name_of(path)
        modules = {each.stem for each in path.parent.iterdir()}
        assert not modules & {name for given in names.values() for name in given}, name_of(path)


def _postpones(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)


def _defines(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in ast.walk(tree))


def test_annotations_are_postponed() -> None:
    """Every module that defines something starts with the same future import."""
    trees = {name_of(path): parse(path) for path in MODULES}
    assert [name for name, tree in trees.items() if _defines(tree) and not _postpones(tree)] == []


def test_the_library_does_not_print() -> None:
    """A library speaks through its return values, errors, observers and log; only the command line writes output."""
    prints = [
        f"{name_of(path)}:{node.lineno}"
        for path in LIBRARY
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


def _tests_in(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


def test_every_test_says_what_it_proves() -> None:
    """A test's docstring is the promise it backs."""
    mute = [
        f"{name_of(path)}::{test.name}"
        for path in TESTS
        for test in _tests_in(parse(path))
        if not ast.get_docstring(test)
    ]
    assert mute == []


UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def test_nothing_is_left_for_later_in_the_text() -> None:
    """What is not done is an entry in the tracker, not a note in the code."""
    marked = [
        f"{name_of(path)}:{number}"
        for path in [*MODULES, *DOCUMENTS, ROOT / "Makefile", ROOT / "pyproject.toml"]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert marked == []


# --- documents ---

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DECISION = re.compile(r"docs/adr/(\d{4})(?:-[a-z0-9-]+\.md)?")


def headings_of(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub forms them."""
    text = FENCE.sub("", path.read_text())
    titles = (line.lstrip("#").strip() for line in text.splitlines() if re.match(r"#{1,6} ", line))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _broken_links(path: Path) -> Iterator[str]:
    for link in LINK.findall(FENCE.sub("", path.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings_of(target)):
            yield f"{name_of(path)}: {link}"


def test_links_lead_somewhere() -> None:
    """Every relative link of a document names a file that is there and, with an anchor, a heading in it."""
    assert [link for path in DOCUMENTS for link in _broken_links(path)] == []


def test_decisions_cited_in_the_code_are_written_down() -> None:
    """A comment that points to `docs/adr/NNNN` points to a record that exists."""
    written = {record.name[:4] for record in (ROOT / "docs" / "adr").glob("[0-9]*.md")}
    missing = [
        f"{name_of(path)}: {cited}"
        for path in [*LIBRARY, *AROUND, ROOT / "pyproject.toml"]
        for cited in DECISION.findall(path.read_text())
        if cited not in written
    ]
    assert missing == []


def test_every_decision_is_listed() -> None:
    """The index of decisions names each record, so that a reader finds it."""
    records = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    index = (ROOT / "docs" / "adr" / "README.md").read_text()
    assert records
    assert [record.name for record in records if f"({record.name})" not in index] == []


def test_modules_named_in_the_documents_exist() -> None:
    """A document that says `sagapost.outbox.envelope` speaks of a module, a name in one, or a metric."""
    metrics = set(re.findall(r'"(sagapost\.[\w.]+)"', (ROOT / "ops/sagapost/ops/telemetry/metrics.py").read_text()))
    missing: list[str] = []
    for path in DOCUMENTS:
        for name in sorted(set(re.findall(r"`(sagapost\.[a-z_]+(?:\.\w+)+)`", path.read_text())) - metrics):
            try:
                pkgutil.resolve_name(name)
            except (ImportError, AttributeError):
                missing.append(f"{name_of(path)}: {name}")
    assert missing == []


def test_tests_named_in_the_documents_exist() -> None:
    """A promise that names the test behind it names one that is there, in the file it links to."""
    missing = [
        f"{name_of(path)}: {test}"
        for path in DOCUMENTS
        for test, file in re.findall(r"\[`(test_\w+)`\]\(([^)#]+)\)", path.read_text())
        if f"def {test}(" not in (path.parent / file).resolve().read_text()
    ]
    assert missing == []
