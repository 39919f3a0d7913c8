"""Reading the settings: from where each value came, and every mistake at once, in words."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from sagapost.core.errors import ConfigurationError
from sagapost.ops.masking import SecretUrl, mask_url
from sagapost.ops.settings.field import ENV_PREFIX, Setting
from sagapost.ops.settings.model import Settings, all_settings

__all__ = ["InvalidSettingsError", "LoadedSettings", "Problem", "Source", "load_settings", "misspelt"]

Source: TypeAlias = Literal["command line", "environment", ".env", "default"]

_FOREIGN = ("SAGAPOST_TEST_",)
"""Prefixes of variables that others read."""
_LONGEST_SHOWN = 80
_NO_FILE: Mapping[str, Any] = {"_env_file": None}


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that is wrong or missing."""

    variable: str
    value: str | None
    """As given, masked where it is a URL."""
    text: str
    example: str
    source: Source

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value}"
        where = "" if self.source in {"environment", "default"} else f" (from {self.source})"
        return f"{self.variable}{value}{where} {self.text}. Example: {self.variable}={self.example}"


class InvalidSettingsError(ConfigurationError):
    """Settings are wrong or missing; the message lists all of them, and variables that may have been meant."""

    def __init__(self, problems: Iterable[Problem], hints: Iterable[str] = ()) -> None:
        self.problems = tuple(problems)
        self.hints = tuple(hints)
        count = len(self.problems)
        lines = "\n".join(f"  {line}" for line in (*self.problems, *self.hints))
        super().__init__(f"{count} setting{'s are' if count != 1 else ' is'} wrong:\n{lines}")


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and where each value came from."""

    settings: Settings
    sources: Mapping[str, Source]
    unknown: Mapping[str, str | None]
    """Variables with our prefix that name no setting, each with the most similar one that does."""

    @property
    def hints(self) -> Sequence[str]:
        """A sentence for each misspelt variable; it is ignored, so a newer release's variables do no harm."""
        return _hints(self.unknown)

    @property
    def database_url(self) -> SecretUrl:
        """Where the database is.

        :raises InvalidSettingsError: if it is not set.
        """
        return self._required("database_url", self.settings.database_url)

    @property
    def broker_url(self) -> SecretUrl:
        """Where the broker is.

        :raises InvalidSettingsError: if it is not set.
        """
        return self._required("broker_url", self.settings.broker_url)

    def _required(self, name: str, value: SecretUrl | None) -> SecretUrl:
        if value is None:
            raise InvalidSettingsError([_missing(name)])
        return value

    def secrets(self) -> list[SecretUrl]:
        """Return the URLs that may carry a password."""
        values = (getattr(self.settings, name) for name in Settings.model_fields)
        return [value for value in values if isinstance(value, SecretUrl)]


def load_settings(
    *,
    required: Collection[str] = (),
    env_file: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedSettings:
    """Read and validate the settings.

    :param required: names of settings this command cannot do without.
    :param env_file: a file that must exist; default: `.env` in the working directory, if there is one.
    :param overrides: values from the command line; None counts as not given.
    :raises InvalidSettingsError: if a value is wrong or missing; lists all of them. Never quotes a secret.
    :raises ConfigurationError: if the file cannot be read.
    """
    described = {entry.name: entry for entry in all_settings()}
    file = _file_source(env_file)
    environment = EnvSettingsSource(Settings)
    given: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(described, "default")
    layers: tuple[tuple[Source, Mapping[str, Any]], ...] = (
        (".env", file()),
        ("environment", environment()),
        ("command line", {name: value for name, value in (overrides or {}).items() if value is not None}),
    )
    for source, layer in layers:
        own = {name: value for name, value in layer.items() if name in described}
        given |= own
        sources |= dict.fromkeys(own, source)
    settings: Settings | None = None
    problems: list[Problem] = []
    try:
        # Nothing is left to be read: `given` holds what the sources had, and wins over them.
        settings = Settings(**given, **_NO_FILE)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
        problems = [_problem(detail, described, given, sources) for detail in details]
    problems += [_missing(name) for name in required if name not in given]
    variables = (name.upper() for name in (*file.env_vars, *environment.env_vars))
    unknown = _unknown(variables, described.values())
    if settings is None or problems:
        raise InvalidSettingsError(problems, _hints(unknown))
    return LoadedSettings(settings, sources, unknown)


def misspelt() -> Sequence[str]:
    """Return the hints for this process's environment and `.env` alone, whatever the values are.

    :raises ConfigurationError: if the file cannot be read.
    """
    file, environment = _file_source(None), EnvSettingsSource(Settings)
    variables = (name.upper() for name in (*file.env_vars, *environment.env_vars))
    return _hints(_unknown(variables, all_settings()))


def _hints(unknown: Mapping[str, str | None]) -> Sequence[str]:
    return [
        f"{variable} is no setting of this release and is ignored.{f' Did you mean {similar}?' if similar else ''}"
        for variable, similar in unknown.items()
    ]


def _file_source(env_file: Path | None) -> DotEnvSettingsSource:
    if env_file is not None and not env_file.is_file():
        raise ConfigurationError(f"The settings file {env_file} does not exist. Name another with --env-file.")
    path = Path(str(Settings.model_config.get("env_file"))) if env_file is None else env_file
    try:
        return DotEnvSettingsSource(Settings, env_file=path)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"The settings file {path} cannot be read: {reason}.") from None


def _unknown(variables: Iterable[str], described: Iterable[Setting]) -> dict[str, str | None]:
    known = [entry.variable for entry in described]
    found: dict[str, str | None] = {}
    for variable in variables:
        if variable.startswith(ENV_PREFIX) and variable not in known and not variable.startswith(_FOREIGN):
            similar = difflib.get_close_matches(variable, known, n=1, cutoff=0.75)
            found[variable] = similar[0] if similar else None
    return found


# --- words ---


def _missing(name: str) -> Problem:
    entry = next(entry for entry in all_settings() if entry.name == name)
    return Problem(entry.variable, None, "is not set", entry.example, "default")


def _problem(
    detail: ErrorDetails, described: Mapping[str, Setting], values: Mapping[str, Any], sources: Mapping[str, Source]
) -> Problem:
    context: dict[str, Any] = detail.get("ctx") or {}
    disagree = detail["type"] == "settings_disagree"
    name = str(context["name"] if disagree else detail["loc"][0])
    entry = described[name]
    # A value that clashes with another one may well be a default.
    value = values.get(name, entry.default if disagree else None)
    return Problem(
        entry.variable, _shown(value, entry), _complaint(detail, context, entry), entry.example, sources[name]
    )


def _complaint(detail: ErrorDetails, context: Mapping[str, Any], entry: Setting) -> str:
    match detail["type"]:
        case "settings_disagree" | "value_error":
            return str(context.get("problem") or context["error"])
        case "greater_than_equal" | "less_than_equal":
            return f"is out of range; use {entry.range}"
        case "literal_error":
            return f"is not one of {entry.range}"
        case "int_parsing" | "int_from_float" | "int_type":
            return "is not a whole number"
        case "bool_parsing" | "bool_type":
            return "is neither true nor false"
        case _:
            return f"is not valid: {detail['msg']}"


def _shown(value: object, entry: Setting) -> str | None:
    """Return the offending value as given, masked if it is a URL; None if there is none."""
    if value is None:
        return None
    text = mask_url(str(value).strip()) if entry.unit.startswith("URL") else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
