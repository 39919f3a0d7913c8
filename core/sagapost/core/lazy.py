"""Packages whose names are imported when they are first used, so that importing one costs no more than what is used.

    if TYPE_CHECKING:
        from sagapost.inbox.declared.context import Context, SyncContext
        from sagapost.inbox.declared.inbox import Inbox
    else:
        __getattr__, __dir__ = lazily(__name__, {"inbox": "Inbox", "context": "Context SyncContext"})

The first half is for type checkers (who would take a `__getattr__` for leave to name anything), the second for Python;
a test holds them to each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__` (PEP 562).

    A name that is also that of a module of the package cannot be lazy: importing the module would put the module in
    its place.

    :param package: its `__name__`.
    :param modules: by module of the package (with dots where it is further down), the names it gives, with spaces
        between them.
    :raises ValueError: if a name is given twice, or is the name of one of the modules.
    """
    homes: dict[str, str] = {}
    for module, names in modules.items():
        for name in names.split():
            if name in homes or name in modules:
                raise ValueError(f"{package}.{name} is given twice, or is a module too")
            homes[name] = f"{package}.{module}"

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        value = getattr(import_module(home), name)
        # The next look does not come here.
        setattr(sys.modules[package], name, value)
        return value

    def listed() -> list[str]:
        return sorted(vars(sys.modules[package]).keys() | homes.keys())

    return get, listed
