"""The public face of the package."""

from __future__ import annotations

import importlib
import pkgutil

import sagapost.inbox


def test_everything_exported_is_there() -> None:
    """`__all__` of the package and of each module in its rooms names only what exists, and each module has one."""
    for info in pkgutil.walk_packages(sagapost.inbox.__path__, "sagapost.inbox."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        assert module.__all__, info.name
        assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert [name for name in sagapost.inbox.__all__ if not hasattr(sagapost.inbox, name)] == []
