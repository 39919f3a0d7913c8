"""The library's modules as trees, with their names and what they import."""

from __future__ import annotations

import ast
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

__all__ = ["ROOT", "House", "Module", "circles"]

ROOT = Path(__file__).resolve().parents[2]
PORTIONS = ("core", "outbox", "inbox", "sagas", "service", "adapters", "ops", "front")


@dataclass(frozen=True)
class Module:
    """One module of the library."""

    name: str
    path: Path
    tree: ast.Module
    is_package: bool

    def imports(self, modules: Container[str]) -> Iterator[str]:
        """Yield which of `modules` it imports, wherever the import stands (in functions and for type checkers too).

        `from package import module` is an import of the module, not of the package.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in modules)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in modules:
                        yield inner
                    elif node.module in modules:
                        yield node.module


class House:
    """Every module of a checkout's library."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root

    @cached_property
    def modules(self) -> Mapping[str, Module]:
        """The modules by dotted name."""
        found: dict[str, Module] = {}
        for portion in PORTIONS:
            for path in sorted((self.root / portion).rglob("*.py")):
                parts = path.relative_to(self.root / portion).with_suffix("").parts
                is_package = parts[-1] == "__init__"
                name = ".".join(parts[:-1] if is_package else parts)
                found[name] = Module(name, path, ast.parse(path.read_text(), str(path)), is_package)
        return found

    def arrows(self) -> Mapping[str, frozenset[str]]:
        """Return which modules of the library each one imports."""
        return {name: frozenset(module.imports(self.modules.keys())) - {name} for name, module in self.modules.items()}


def circles(arrows: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in a circle (strongly connected, after Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group: list[str] = []
            while not group or group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in arrows:
        if name not in index:
            visit(name)
    return found
