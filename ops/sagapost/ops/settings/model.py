"""All settings of a `sagapost` process, as one frozen object."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import SettingsConfigDict

from sagapost.core.databases import kit_of
from sagapost.ops.settings.connections import ConnectionSettings
from sagapost.ops.settings.consumer import ConsumerOptions
from sagapost.ops.settings.field import ENV_PREFIX, Setting, describe, render
from sagapost.ops.settings.process import ProcessSettings
from sagapost.ops.settings.relay import RelayOptions

__all__ = ["Settings", "all_settings"]

_ORDERED_PAIRS = (
    ("consumer_batch", "consumer_prefetch"),
    ("consumer_retry_quick_base", "consumer_retry_quick_cap"),
    ("consumer_retry_base", "consumer_retry_cap"),
    ("consumer_reconnect_base", "consumer_reconnect_cap"),
    ("relay_retry_base", "relay_retry_cap"),
    ("relay_reconnect_base", "relay_reconnect_cap"),
    ("start_retry_base", "start_retry_cap"),
)


# Pydantic collects the fields from the last base to the first; this is the order a reader meets them in.
class Settings(ProcessSettings, ConsumerOptions, RelayOptions, ConnectionSettings):
    """Read from `SAGAPOST_*` environment variables, then from a `.env` file, then the defaults.

    Use `load_settings`, whose errors are written for people and hold no secrets.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """Check what no field can check alone; the error names the variable to change."""
        for low, high in _ORDERED_PAIRS:
            if getattr(self, high) is not None and getattr(self, high) < getattr(self, low):
                raise _disagree(high, f"is less than {ENV_PREFIX}{low.upper()} ({render(getattr(self, low))})")
        if self.database_url is not None and self.database_schema is not None:
            kit = kit_of(self.database_url.backend)
            if not kit.has_schemas:
                raise _disagree(
                    "database_schema", f"is set, but {kit.title} has no schemas; use a table prefix instead"
                )
        if self.database_direct_url is not None and not kit_of(self.database_direct_url.backend).notifies:
            raise _disagree("database_direct_url", "names an SQLite file; only PostgreSQL is reached by two ways")
        return self


def _disagree(name: str, problem: str) -> PydanticCustomError:
    # The braces of a message template are pydantic's; the text goes in as a value.
    return PydanticCustomError("settings_disagree", "{problem}", {"name": name, "problem": problem})


def all_settings() -> list[Setting]:
    """Return what each setting says of itself, in the order of the docs."""
    fields: dict[str, Any] = Settings.model_fields
    return [describe(name, field) for name, field in fields.items()]
