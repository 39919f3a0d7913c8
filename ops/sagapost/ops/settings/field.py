"""One way to declare a setting, so that its help, its error messages and its page in the docs say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from sagapost.ops.masking import SecretUrl
from sagapost.ops.settings.units import format_duration, format_size

__all__ = ["ENV_PREFIX", "Setting", "describe", "render", "setting"]

ENV_PREFIX = "SAGAPOST_"


def setting(
    default: Any,
    what: str,
    *,
    example: str,
    unit: str,
    danger: str,
    low: Any = None,
    high: Any = None,
) -> Any:
    """Declare a field.

    :param what: one or two sentences, starting with a capital.
    :param example: a value as one would write it in the environment.
    :param unit: what the value is counted in, or its form.
    :param danger: what goes wrong with a careless value.
    """
    extra: dict[str, Any] = {"example": example, "unit": unit, "danger": danger}
    return Field(default, description=what, ge=low, le=high, json_schema_extra=extra, validate_default=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be said about one setting."""

    name: str
    variable: str
    what: str
    unit: str
    default: str
    range: str
    example: str
    danger: str


def describe(name: str, field: FieldInfo) -> Setting:
    """Return what a declared field says of itself."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError(f"{name} was not declared with setting()")
    return Setting(
        name=name,
        variable=ENV_PREFIX + name.upper(),
        what=field.description or "",
        unit=str(extra["unit"]),
        default=render(field.default, unit=str(extra["unit"])),
        range=_range(field, unit=str(extra["unit"])),
        example=str(extra["example"]),
        danger=str(extra["danger"]),
    )


def _range(field: FieldInfo, *, unit: str) -> str:
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    if choices:
        return " | ".join(choices)
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    if low is None and high is None:
        return ""
    return f"{render(low, unit=unit)} to {render(high, unit=unit)}"


def render(value: object, *, unit: str = "") -> str:
    """Return a value as one would write it in the environment; secrets masked, an absent value empty."""
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case int() if unit == "bytes":
            return format_size(value)
        case timedelta():
            return format_duration(value)
        case Mapping():
            return ",".join(f"{key}={target}" for key, target in value.items())
        case frozenset():
            return ",".join(sorted(str(item) for item in value))
        case SecretUrl():
            return str(value)
        case _:
            return str(value)
