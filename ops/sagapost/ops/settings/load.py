"""Reading the settings: from where each value came, and every mistake at once, in words."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from sagapost.core.adapters import BrokerAdapter
from sagapost.core.errors import ConfigurationError
from sagapost.ops.masking import MASK, SecretUrl, mask_url
from sagapost.ops.registry import brokers, database_adapter
from sagapost.ops.settings.field import ENV_PREFIX, Setting, render
from sagapost.ops.settings.model import PARTS, Part, Settings, all_settings, part_of
from sagapost.ops.settings.sources import Given, env_file_of, environment, read_secret

__all__ = ["InvalidSettingsError", "LoadedSettings", "Problem", "load_settings", "misspelt"]

_FOREIGN = ("SAGAPOST_TEST_",)
"""Prefixes of variables that others read."""
_LONGEST_SHOWN = 80
_FILE: Final = "_FILE"
"""Ends the name of a variable that names the file with a secret."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One setting that is wrong or missing."""

    variable: str
    value: str | None
    """As given, masked where it is a URL."""
    text: str
    example: str
    source: str

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
    declared: Sequence[Setting]
    """What could be set in this process, its broker's adapter included, in the order of the docs."""
    values: Mapping[str, Any]
    """By name: what is in force."""
    sources: Mapping[str, str]
    """By name: `command line`, `environment`, `.env`, `default`, or the file that holds the secret."""
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
        return self._required("database_url", self.settings.connections.database_url)

    @property
    def broker_url(self) -> SecretUrl:
        """Where the broker is.

        :raises InvalidSettingsError: if it is not set.
        """
        return self._required("broker_url", self.settings.connections.broker_url)

    def _required(self, name: str, value: SecretUrl | None) -> SecretUrl:
        if value is None:
            raise InvalidSettingsError([_missing(name, self.declared)])
        return value

    def secrets(self) -> list[SecretUrl]:
        """Return the URLs that may carry a password."""
        return [value for value in self.values.values() if isinstance(value, SecretUrl)]


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
    :raises ConfigurationError: if the file cannot be read, or the adapter of the broker's URL not be used.
    """
    given = [env_file_of(env_file), environment()]
    reading = _Reading(given, {name: value for name, value in (overrides or {}).items() if value is not None})
    for part in PARTS:
        reading.read(part.settings)
    url = reading.values["broker_url"]
    adapter = brokers.find(url.scheme) if isinstance(url, SecretUrl) else None
    # Ours are checked whichever is used: who changes the URL is to find them right.
    adapters = {each.name: each for each in (*brokers.ours(), *([adapter] if adapter is not None else []))}
    for each in adapters.values():
        reading.read(part_of(each).settings)
    reading.compare()
    reading.require(required)
    unknown = _unknown(given, reading.declared)
    if reading.problems:
        raise InvalidSettingsError(reading.problems, _hints(unknown))
    settings = _made(reading.values, adapter)
    return LoadedSettings(settings, reading.declared, reading.values, reading.sources, unknown)


def misspelt() -> Sequence[str]:
    """Return the hints for this process's environment and `.env` alone, whatever the values are.

    :raises ConfigurationError: if the file cannot be read.
    """
    return _hints(_unknown([env_file_of(None), environment()], all_settings()))


# --- reading ---


@dataclass(slots=True)
class _Reading:
    """What has been read so far."""

    given: Sequence[Given]
    """The later win."""
    overrides: Mapping[str, Any]
    declared: list[Setting] = field(default_factory=list[Setting])
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    sources: dict[str, str] = field(default_factory=dict[str, str])
    problems: list[Problem] = field(default_factory=list[Problem])

    def read(self, settings: Iterable[Setting]) -> None:
        """Read the values of these settings.

        :raises ConfigurationError: if another part has a variable of the same name.
        """
        for setting in settings:
            if setting.name in self.sources:
                other = next(each for each in self.declared if each.name == setting.name)
                raise ConfigurationError(
                    f"{setting.variable} is declared twice, by {other.section} and by {setting.section}. Rename it in "
                    "the adapter that came later."
                )
            self.declared.append(setting)
            self.values[setting.name] = setting.leaf.default
            self.sources[setting.name] = "default"
            raw: Any = None
            try:
                raw, source = self._raw(setting)
                if source is not None:
                    self.sources[setting.name] = source
                    self.values[setting.name] = setting.parse(raw)
            except ValueError as error:
                self.problems.append(_problem(setting, raw, str(error), self.sources[setting.name]))

    def _raw(self, setting: Setting) -> tuple[Any, str | None]:
        """Return a value as it is given, and by whom; None if nobody gives one.

        :raises ValueError: if it is given twice, or in a file that cannot be read.
        """
        if setting.name in self.overrides:
            return self.overrides[setting.name], "command line"
        for each in reversed(self.given):
            plain = each.variables.get(setting.variable)
            file = each.variables.get(setting.variable + _FILE) if setting.is_secret else None
            if plain is not None and file is not None:
                raise ValueError(f"is set twice, by itself and by {setting.variable}{_FILE}; set one of them")
            if plain is not None:
                return plain, each.source
            if file is not None:
                return read_secret(setting.variable + _FILE, file.strip()), file.strip()
        return None, None

    def require(self, names: Iterable[str]) -> None:
        """Note which of these nobody gives."""
        wrong = {problem.variable for problem in self.problems}
        missing = [_missing(name, self.declared) for name in names if self.sources[name] == "default"]
        self.problems += [problem for problem in missing if problem.variable not in wrong]

    def compare(self) -> None:
        """Check what no setting can check alone; the problem names the variable to change."""
        wrong = {problem.variable for problem in self.problems}
        for setting in self.declared:
            low = setting.leaf.declared.at_least
            value = self.values[setting.name]
            if low is None or value is None:
                continue
            place = (*setting.leaf.path[:-1], low)
            other = next(each for each in self.declared if each.section == setting.section and each.leaf.path == place)
            least = self.values[other.name]
            if value < least and not {setting.variable, other.variable} & wrong:
                self._disagree(setting.name, f"is less than {other.variable} ({render(least, unit=other.unit)})")
        self._compare_databases()

    def _compare_databases(self) -> None:
        url, direct = self.values["database_url"], self.values["database_direct_url"]
        schema = self.values["database_schema"]
        if (url is None or schema is None) and direct is None:
            return
        if url is not None and schema is not None:
            adapter = database_adapter(url.scheme)
            if not adapter.kit().has_schemas:
                text = f"is set, but {adapter.title} has no schemas; use a table prefix instead"
                self._disagree("database_schema", text)
        if direct is not None:
            adapter = database_adapter(direct.scheme)
            if not adapter.kit().notifies:
                text = f"names a database of {adapter.title}, which nothing listens to; leave it out"
                self._disagree("database_direct_url", text)

    def _disagree(self, name: str, text: str) -> None:
        setting = next(each for each in self.declared if each.name == name)
        self.problems.append(_problem(setting, self.values[name], text, self.sources[name]))


def _made(values: Mapping[str, Any], adapter: BrokerAdapter | None) -> Settings:
    made = {part.name: _instance(part, values) for part in PARTS}
    return Settings(**made, broker=None if adapter is None else _instance(part_of(adapter), values))


def _instance(part: Part, values: Mapping[str, Any]) -> Any:
    """Return a settings object with these values."""
    return _with(part.kind(), {setting.leaf.path: values[setting.name] for setting in part.settings})


def _with(made: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    """Return a copy with these values at these paths, all of them put in at once: each may need the others."""
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        below = {path[1:]: value for path, value in values.items() if path[0] == name}
        own[name] = _with(getattr(made, name), below)
    return replace(made, **own)


# --- words ---


def _unknown(given: Iterable[Given], declared: Iterable[Setting]) -> dict[str, str | None]:
    known = [name for each in declared for name in _names_of(each)]
    # What an adapter of another package declares is not looked up where it is not used.
    others = tuple(f"{ENV_PREFIX}{scheme.upper()}_" for scheme in brokers.others())
    found: dict[str, str | None] = {}
    for variable in dict.fromkeys(name for each in given for name in each.variables):
        if variable not in known and not variable.startswith((*_FOREIGN, *others)):
            similar = difflib.get_close_matches(variable, known, n=1, cutoff=0.75)
            found[variable] = similar[0] if similar else None
    return found


def _names_of(setting: Setting) -> Sequence[str]:
    return [setting.variable, setting.variable + _FILE] if setting.is_secret else [setting.variable]


def _hints(unknown: Mapping[str, str | None]) -> Sequence[str]:
    return [
        f"{variable} is no setting of this release and is ignored.{f' Did you mean {similar}?' if similar else ''}"
        for variable, similar in unknown.items()
    ]


def _missing(name: str, declared: Iterable[Setting]) -> Problem:
    setting = next(setting for setting in declared if setting.name == name)
    return Problem(setting.variable, None, "is not set", setting.example, "default")


def _problem(setting: Setting, value: object, text: str, source: str) -> Problem:
    return Problem(setting.variable, _shown(value, setting), text, setting.example, source)


def _shown(value: object, setting: Setting) -> str | None:
    """Return the offending value as given, masked if it is a secret; None if there is none."""
    if value is None:
        return None
    if setting.is_secret:
        text = mask_url(str(value).strip()) if setting.leaf.kind is SecretUrl and isinstance(value, str) else MASK
        text = str(value) if isinstance(value, SecretUrl) else text
    else:
        text = render(value, unit=setting.unit)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
