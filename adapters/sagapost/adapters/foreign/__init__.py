"""Readers of the formats in which other libraries write their messages, for `ForeignMessages(reader=)`."""

from typing import TYPE_CHECKING

from sagapost.core.lazy import lazily

if TYPE_CHECKING:
    from sagapost.adapters.foreign.cap import CapReader
    from sagapost.adapters.foreign.debezium import DebeziumReader
    from sagapost.adapters.foreign.masstransit import MassTransitReader
    from sagapost.adapters.foreign.nservicebus import NServiceBusReader
    from sagapost.adapters.foreign.plain_json import PlainJsonReader
    from sagapost.adapters.foreign.watermill import WatermillReader
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "cap": "CapReader",
            "debezium": "DebeziumReader",
            "masstransit": "MassTransitReader",
            "nservicebus": "NServiceBusReader",
            "plain_json": "PlainJsonReader",
            "watermill": "WatermillReader",
        },
    )

__all__ = [
    "CapReader",
    "DebeziumReader",
    "MassTransitReader",
    "NServiceBusReader",
    "PlainJsonReader",
    "WatermillReader",
]
