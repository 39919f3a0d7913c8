"""Where settings are read from: the environment, a `.env` file, and files that hold one secret each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sagapost.core.errors import ConfigurationError
from sagapost.ops.settings.field import ENV_PREFIX

__all__ = ["DEFAULT_FILE", "Given", "environment", "env_file_of", "read_secret"]

DEFAULT_FILE = ".env"
_LARGEST_SECRET = 64 * 1024


@dataclass(frozen=True, slots=True)
class Given:
    """The variables of one source that begin with our prefix and are not empty."""

    source: str
    variables: Mapping[str, str]


def environment() -> Given:
    """Return those of the process."""
    return Given("environment", _ours(os.environ))


def env_file_of(path: Path | None) -> Given:
    """Return those of a file that must exist; default: `.env` in the working directory, if there is one.

    :raises ConfigurationError: if it cannot be read.
    """
    if path is None and not Path(DEFAULT_FILE).is_file():
        return Given(DEFAULT_FILE, {})
    if path is not None and not path.is_file():
        raise ConfigurationError(f"The settings file {path} does not exist. Name another with --env-file.")
    from dotenv import dotenv_values

    file = Path(DEFAULT_FILE) if path is None else path
    try:
        values = dotenv_values(file, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The settings file {file} cannot be read: {_reason(error)}.") from None
    return Given(DEFAULT_FILE, _ours({name: value for name, value in values.items() if value is not None}))


def _ours(variables: Mapping[str, str]) -> Mapping[str, str]:
    # Compose files pass `SAGAPOST_X=` for what is unset outside.
    return {
        name.upper(): value
        for name, value in variables.items()
        if name.upper().startswith(ENV_PREFIX) and value.strip()
    }


def read_secret(variable: str, path: str) -> str:
    """Return what the file that a variable names holds, without the line end at its end.

    :raises ValueError: if it cannot be read or holds nothing, as the rest of a sentence that begins with the
        setting's variable.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_SECRET + 1)
        if len(content) > _LARGEST_SECRET:
            raise ValueError(f"cannot be read: {variable} names the file {path}, which is larger than any secret")
        text = content.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {variable} names the file {path}: {_reason(error)}") from None
    if not text.strip():
        raise ValueError(f"cannot be read: {variable} names the file {path}, which is empty")
    return text


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "it is not UTF-8 text"
