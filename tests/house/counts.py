"""What is counted, each with the rule by which it is counted."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.house.source import House, Module, circles

__all__ = ["COUNTS", "Count"]


@dataclass(frozen=True, slots=True)
class Count:
    """One figure of the house."""

    name: str
    before: int
    """At commit 8d91856, by hand or by the same rule."""
    aim: int
    find: Callable[[House], list[str]]
    """Returns what is counted, one line each."""


def _speaks_to_databases(module: Module) -> bool:
    """Whether a module is a kit or an adapter, where a dialect may be asked for and a driver's error read."""
    return module.name.startswith(("sagapost.adapters.", "sagapost.core.databases"))


def _at(module: Module, node: ast.AST) -> str:
    return f"{module.name}:{getattr(node, 'lineno', 0)}"


def dialect_branches(house: House) -> list[str]:
    """Comparisons of something called a dialect, or of its name, with a text."""
    found: list[str] = []
    for module in house.modules.values():
        if _speaks_to_databases(module):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Compare):
                asked = [ast.unparse(side) for side in (node.left, *node.comparators)]
                if any(
                    side.endswith(("dialect", "dialect.name", "get_backend_name()", "drivername")) for side in asked
                ):
                    found.append(_at(module, node))
    return found


_DRIVER_CLASSES = frozenset(
    {"OperationalError", "InterfaceError", "PostgresError", "IntegrityError", "ProgrammingError"}
)
_DRIVER_CODES = frozenset({"sqlstate", "pgcode", "sqlite_errorcode", "connection_invalidated"})


def error_lists(house: House) -> list[str]:
    """Modules outside the kits that decide by classes or codes of a driver what a database error means.

    Catching `SQLAlchemyError` or `DBAPIError` to hand it to the kit's `classify` is not a decision; naming subclasses,
    or a SQLSTATE, is.
    """
    found: list[str] = []
    for module in house.modules.values():
        if module.name.startswith("sagapost.core.databases"):
            continue
        reasons = {
            _at(module, node)
            for node in ast.walk(module.tree)
            if (isinstance(node, ast.Name) and node.id in _DRIVER_CLASSES)
            or (isinstance(node, ast.Attribute) and node.attr in _DRIVER_CODES)
        }
        if reasons:
            found.append(min(reasons))
    return found


def reconnect_loops(house: House) -> list[str]:
    """Functions outside `sagapost.core.life` that ask a backoff how long to wait before they reconnect."""
    found: list[str] = []
    for module in house.modules.values():
        if module.name == "sagapost.core.life":
            continue
        found += [
            f"{_at(module, function)} {function.name}"
            for function in _functions(module.tree)
            if any(_asks_backoff(node) for node in ast.walk(function))
        ]
    return found


def _asks_backoff(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "seconds"
        and any(word in ast.unparse(node.func.value) for word in ("backoff", "reconnect", "_retry"))
        and "quick" not in ast.unparse(node.func.value)
    )


def rearmed_flags(house: House) -> list[str]:
    """Attributes that get a new `anyio.Event` outside `__init__`: wake-up flags that are armed by hand."""
    found: list[str] = []
    for module in house.modules.values():
        if module.name == "sagapost.core.life":
            continue
        for function in _functions(module.tree):
            if function.name == "__init__":
                continue
            found += [
                _at(module, node)
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and ast.unparse(node.value) in {"anyio.Event()", "asyncio.Event()"}
                and any(isinstance(target, ast.Attribute) for target in node.targets)
            ]
    return found


def circles_of_imports(house: House) -> list[str]:
    """Modules that are part of a circle of imports, also of those inside functions and for type checkers."""
    return [name for group in circles(house.arrows()) for name in group]


def repeated_class_names(house: House) -> list[str]:
    """Public classes whose name another public class of the library has too."""
    places: dict[str, list[str]] = {}
    for module in house.modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module.name)
    return [f"{name}: {', '.join(where)}" for name, where in sorted(places.items()) if len(where) > 1]


def rooms_of_the_inbox(house: House) -> list[str]:
    """Folders of the inbox, or its modules where it is flat."""
    return sorted(
        {
            name.split(".")[2]
            for name, module in house.modules.items()
            if name.startswith("sagapost.inbox.") and not (module.is_package and name.count(".") < 2)
        }
    )


def _between_rooms(house: House) -> dict[str, frozenset[str]]:
    rooms: dict[str, set[str]] = {}
    for name, others in house.arrows().items():
        if not name.startswith("sagapost.inbox."):
            continue
        room = name.split(".")[2]
        rooms.setdefault(room, set()).update(
            other.split(".")[2] for other in others if other.startswith("sagapost.inbox.")
        )
    return {room: frozenset(others - {room}) & rooms.keys() for room, others in rooms.items()}


def arrows_of_the_inbox(house: House) -> list[str]:
    """Imports between the rooms of the inbox (its modules, where it is flat)."""
    return [f"{room} -> {other}" for room, others in _between_rooms(house).items() for other in sorted(others)]


def floors_of_the_inbox(house: House) -> list[str]:
    """The longest way down through the rooms of the inbox."""
    arrows = _between_rooms(house)
    depths: dict[str, list[str]] = {}

    def way(room: str, above: frozenset[str]) -> list[str]:
        if room in depths:
            return depths[room]
        below = [way(other, above | {room}) for other in arrows[room] if other not in above]
        longest = max(below, key=len, default=[])
        depths[room] = [room, *longest]
        return depths[room]

    return max((way(room, frozenset()) for room in arrows), key=len, default=[])


def public_paths(house: House) -> list[str]:
    """Packages that a user imports from: those whose `__init__` exports names."""
    return [name for name, module in house.modules.items() if module.is_package and _exported(module)]


def public_names(house: House) -> list[str]:
    """Names on the one path for the author of a service."""
    front = house.modules.get("sagapost")
    if front is not None:
        return _exported(front)
    return [f"{name}.{each}" for name in public_paths(house) for each in _exported(house.modules[name])]


def _exported(module: Module) -> list[str]:
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def long_functions(house: House) -> list[str]:
    """Functions over 60 lines."""
    found: list[str] = []
    for module in house.modules.values():
        lengths = ((each, (each.end_lineno or 0) - each.lineno + 1) for each in _functions(module.tree))
        found += [f"{_at(module, each)} {each.name}: {length}" for each, length in lengths if length > 60]
    return found


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


COUNTS: tuple[Count, ...] = (
    Count("lists of what a database error means, outside the kits", 5, 0, error_lists),
    Count("hand-written reconnect loops", 11, 0, reconnect_loops),
    Count("wake-up flags re-armed by hand", 18, 0, rearmed_flags),
    Count("branches by dialect outside kits and adapters", 38, 0, dialect_branches),
    Count("modules in a circle of imports", 7, 0, circles_of_imports),
    Count("rooms of the inbox", 46, 7, rooms_of_the_inbox),
    Count("floors of the inbox", 14, 6, floors_of_the_inbox),
    Count("arrows between the rooms of the inbox", 182, 20, arrows_of_the_inbox),
    Count("public names on the author's path", 119, 32, public_names),
    Count("public class names defined more than once", 20, 0, repeated_class_names),
    Count("functions over 60 lines", 9, 0, long_functions),
)
