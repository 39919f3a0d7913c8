"""Functions written once from a declaration, for loops that run for every event and must not look anything up."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from typing import Any

__all__ = ["generated"]


def generated(name: str, source: str, names: Mapping[str, object]) -> Any:
    """Return the function `name` that `source` defines; `names` are what it may refer to.

    Its lines show up in tracebacks like those of any other.
    """
    file = f"<generated {name} {id(names):x}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = dict(names)
    exec(compile(source, file, "exec"), namespace)  # noqa: S102 - of our own names, never of anything that is read
    return namespace[name]
