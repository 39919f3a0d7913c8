"""Compensations as declared: functions that undo a step, and how their arguments travel through the ledger."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, get_type_hints

import msgspec

from sagapost.core.errors import ConfigurationError, EncodingError

__all__ = ["CompensationDeclaration", "CompensationFunction", "NotYet", "declare"]


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""NUL in JSON: an escape that is not itself escaped."""


def _holds_no_number(value: object) -> bool:
    """Return whether a JSON value has a float in it that is none."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_holds_no_number(item) for item in value.values())
    return isinstance(value, list | tuple) and any(_holds_no_number(item) for item in value)


@dataclass(frozen=True, slots=True)
class NotYet:
    """Returned by a compensation that is in progress: keep what it did, and call it again after a while.

    Counts as no attempt. Older steps wait, since order is reverse order.
    """

    after: timedelta


CompensationFunction: TypeAlias = Callable[..., Awaitable[NotYet | None]]
"""``async def refund_payment(ctx: CompensationContext, *, payment_id: UUID) -> None``."""


@dataclass(frozen=True, slots=True)
class CompensationDeclaration:
    """One registered compensation."""

    name: str
    function: CompensationFunction
    emits: tuple[str, ...]
    parameters: Mapping[str, Any]
    """Name -> annotation, for turning JSON back into what the function expects."""
    signature: inspect.Signature
    """The function's, read once: inspecting a function is slow."""

    def pack(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turn the arguments of a call into JSON values.

        Checked when the step runs, not when it is undone, perhaps days later.

        :raises ConfigurationError: if the function cannot be called with them.
        :raises EncodingError: if one has no JSON form, or could not be read again.
        """
        try:
            self.signature.bind(object(), **arguments)
        except TypeError as error:
            raise ConfigurationError(
                f"The compensation {self.name!r} cannot be called with the arguments {sorted(arguments)}: {error}."
            ) from error
        try:
            packed: Mapping[str, Any] = msgspec.to_builtins(dict(arguments), str_keys=True)
            encoded = msgspec.json.encode(packed)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._unfit(str(error)) from error
        if _NUL.search(encoded) is not None:
            raise self._unfit("a text has the character NUL, which no database keeps as JSON")
        if _holds_no_number(packed):
            raise self._unfit("a number is infinite or none at all (NaN), which JSON has no form for")
        try:
            # As it will be read, perhaps days later: what cannot be read then is refused now.
            self.unpack(msgspec.json.decode(encoded))
        except (ConfigurationError, TypeError, ValueError, RecursionError) as error:
            raise self._unfit(f"they could not be read again: {error}") from error
        return packed

    def _unfit(self, reason: str) -> EncodingError:
        return EncodingError(event_type=f"compensation {self.name}", cls=dict, reason=reason)

    def unpack(self, packed: Mapping[str, Any]) -> dict[str, Any]:
        """Turn recorded JSON values into arguments.

        :raises ConfigurationError: if they no longer fit the function, which has changed since they were recorded.
        """
        try:
            arguments = {
                name: msgspec.convert(value, self.parameters.get(name, Any), strict=False)
                for name, value in packed.items()
            }
            self.signature.bind(object(), **arguments)
        except (msgspec.ValidationError, TypeError) as error:
            raise ConfigurationError(
                f"What was recorded for the compensation {self.name!r} no longer fits its parameters: {error}. "
                "Keep accepting what was recorded until no saga holds it any more."
            ) from error
        return arguments


def declare(function: CompensationFunction, *, name: str | None, emits: tuple[str, ...]) -> CompensationDeclaration:
    """Read a function's signature.

    :raises ConfigurationError: if it is not an `async def` with a context as its first parameter.
    """
    chosen = name if name is not None else function.__name__
    if not inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"The compensation {chosen!r} is not an `async def`.")
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if not parameters or parameters[0].kind not in {
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    }:
        raise ConfigurationError(f"The compensation {chosen!r} takes a context as its first parameter.")
    hints = get_type_hints(function)
    return CompensationDeclaration(
        name=chosen,
        function=function,
        emits=emits,
        parameters={parameter.name: hints.get(parameter.name, Any) for parameter in parameters[1:]},
        signature=signature,
    )
