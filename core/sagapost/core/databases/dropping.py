"""The rule that no connection is used again which cannot serve: kept by SQLAlchemy itself, on every engine of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import ExceptionContext

from sagapost.core.databases.failures import ReadOnly, Unavailable
from sagapost.core.databases.kit import kit_of

if TYPE_CHECKING:
    # It brings the ORM with it, which a relay's process does not need.
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["drop_useless_connections"]


def drop_useless_connections(engine: AsyncEngine | Engine) -> None:
    """Have SQLAlchemy close a connection for good when an error says that it will not serve again.

    It knows by itself of those whose socket is closed. A server that takes no writes any more keeps its connections
    open: whoever stays on them never finds the one that took over. So they count as broken, and with the one that said
    so all that were opened before it. Idempotent.
    """
    target = engine if isinstance(engine, Engine) else engine.sync_engine
    if not event.contains(target, "handle_error", _judge):
        event.listen(target, "handle_error", _judge)


def _judge(context: ExceptionContext) -> None:
    match kit_of(context.dialect.name).classify(context.original_exception):
        case ReadOnly():
            context.is_disconnect = context.invalidate_pool_on_disconnect = True
        case Unavailable(ended=True):
            # Whether the others are of use, each of them will say.
            context.invalidate_pool_on_disconnect = context.is_disconnect
            context.is_disconnect = True
        case _:
            return
