"""Rules for corrective actions, read from a TOML file."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from sagapost.core.errors import ConfigurationError
from sagapost.sagas.tracker import Action, Notify, PublishEvent, RequestRollback, Rule, SagaState

__all__ = ["read_rules"]


class _Rule(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One ``[[rule]]``."""

    name: str
    states: tuple[SagaState, ...] = ()
    late: bool = False
    silent_for_seconds: float = 0
    rollback: bool = False
    emit: str | None = None
    """Event type."""
    data: dict[str, Any] = {}
    webhook: str | None = None

    def action(self) -> Action:
        """Return the one action that is named.

        :raises ConfigurationError: if there is none, or several.
        """
        actions: list[Action] = []
        if self.rollback:
            actions.append(RequestRollback())
        if self.emit is not None:
            actions.append(PublishEvent(self.data, type=self.emit))
        if self.webhook is not None:
            actions.append(Notify(self.webhook))
        if len(actions) != 1:
            raise ConfigurationError(
                f"The rule {self.name!r} names {len(actions)} actions; give it one of rollback = true, emit, webhook."
            )
        return actions[0]


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    rule: tuple[_Rule, ...] = ()


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read a file of rules.

    :raises ConfigurationError: if it cannot be read or says something that is not understood.
    """
    try:
        with path.open("rb") as file:
            found = msgspec.convert(tomllib.load(file), _File)
    except OSError as error:
        raise ConfigurationError(f"The rules {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{path} holds no rules: {error}. See docs/tracker.md for the form.") from error
    return tuple(
        Rule(
            rule.name,
            rule.action(),
            states=rule.states,
            late=rule.late,
            silent_for=timedelta(seconds=rule.silent_for_seconds),
        )
        for rule in found.rule
    )
