"""The settings of a `sagapost` process, read from the environment. Needs the extra `cli`."""

from sagapost.ops.settings.load import InvalidSettingsError, LoadedSettings, Problem, load_settings, misspelt
from sagapost.ops.settings.model import Settings, all_settings

__all__ = [
    "InvalidSettingsError",
    "LoadedSettings",
    "Problem",
    "Settings",
    "all_settings",
    "load_settings",
    "misspelt",
]
