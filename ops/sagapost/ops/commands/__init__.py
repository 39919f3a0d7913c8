"""The commands of `sagapost`: `listing` names them all, each is imported when it is called. Needs the extra `cli`."""

from sagapost.ops.commands.listing import COMMANDS, app

__all__ = ["COMMANDS", "app"]
