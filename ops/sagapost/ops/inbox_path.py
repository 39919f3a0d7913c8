"""Finding the service, or the inbox, that `module:attribute` names."""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from sagapost.core.errors import ConfigurationError, SagapostError
from sagapost.inbox.declared.inbox import Inbox
from sagapost.service.service import Service

__all__ = ["load_inbox", "load_inboxes"]

_EXAMPLE = "Example: sagapost consume shop.warehouse:warehouse"


def load_inboxes(paths: Sequence[str]) -> list[Inbox]:
    """Return the inboxes of several paths, in their order.

    :raises ConfigurationError: like `load_inbox`, or if two of them have the same name, and with it the same queue.
    """
    inboxes = [load_inbox(path) for path in paths]
    named: dict[str, str] = {}
    for path, inbox in zip(paths, inboxes, strict=True):
        if inbox.name in named:
            raise ConfigurationError(
                f"{path} and {named[inbox.name]} both are the service {inbox.name!r}, so they would share one queue "
                "and take each other's events. Name it once, or give one of them another name."
            )
        named[inbox.name] = path
    return inboxes


def load_inbox(path: str) -> Inbox:
    """Import the module and return the inbox of the attribute, which may be dotted.

    The working directory is searched too.

    :raises ConfigurationError: if there is no such module or attribute, or it is neither a `Service` nor an `Inbox`;
        says what there is instead. An error that the module itself raises while being imported is its cause. Or if
        what the service declares does not fit together.
    """
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigurationError(f"{path!r} does not name a service; write module:attribute. {_EXAMPLE}")
    module = _import(module_name, path)
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{path!r}: {module_name} has no {attribute!r}. {_instead(module, attribute)}")
        found = getattr(found, part)
    if isinstance(found, Service):
        found.check()
        return found.inbox
    if not isinstance(found, Inbox):
        kind = f"{type(found).__module__}.{type(found).__qualname__}"
        raise ConfigurationError(f"{path!r} is a {kind}, not a Service or an Inbox. {_instead(module, attribute)}")
    return found


def _import(name: str, path: str) -> ModuleType:
    here = str(Path.cwd())
    # A console script has its own folder on the path, not the one it was called from.
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"{path!r}: there is no module {missing!r} in {here} or among the installed packages. {_EXAMPLE}"
            ) from None
        raise ConfigurationError(f"{path!r}: {name} imports {missing!r}, which is not installed.") from error
    except SagapostError:
        # A declaration in the module is wrong, and the error already says which.
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigurationError(
            f"{path!r}: importing {name} failed with {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno})"
        ) from error


def _instead(module: ModuleType, attribute: str) -> str:
    found = [name for name, value in vars(module).items() if isinstance(value, Service | Inbox)]
    if not found:
        return f"There is no Service in {module.__name__}. {_EXAMPLE}"
    similar = difflib.get_close_matches(attribute, found, n=1)
    names = ", ".join(f"{module.__name__}:{name}" for name in (similar or found))
    return f"Did you mean {names}?"
