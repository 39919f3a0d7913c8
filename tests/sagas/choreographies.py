"""A choreography in which nothing is wrong, and ways to plant mistakes in it."""

from __future__ import annotations

from typing import Any

import msgspec

from sagapost.sagas.choreography import Compensation, DeclaredDeadline, Manifest, Step

__all__ = ["ORDER_SCHEMA", "healthy", "replace_manifest", "replace_step"]

ORDER_SCHEMA = {"type": "object", "properties": {"order_id": {"type": "string"}}, "required": ["order_id"]}


def healthy() -> list[Manifest]:
    """Orders -> payment -> warehouse: compensations that something triggers, a deadline, ends."""
    return [
        Manifest(
            service="orders",
            source="https://orders.example",
            starts=("order-placed",),
            ends=("order-completed", "order-cancelled"),
            schemas={"order-placed": ORDER_SCHEMA},
            steps=(
                Step(
                    name="watch",
                    handles=("order-placed",),
                    sets=(DeclaredDeadline(name="fulfil", event="order-overdue", after_seconds=3600),),
                    changes_nothing=True,
                ),
                Step(name="complete", handles=("goods-dispatched",), emits=("order-completed",), cancels=("fulfil",)),
                Step(
                    name="cancel",
                    handles=("payment-declined", "item-missing", "order-overdue"),
                    emits=("order-cancelled",),
                    compensates=("order-placed",),
                    cancels=("fulfil",),
                ),
            ),
        ),
        Manifest(
            service="payment",
            source="https://payment.example",
            schemas={"order-placed": ORDER_SCHEMA},
            steps=(
                Step(
                    name="take_payment",
                    handles=("order-placed",),
                    emits=("payment-taken",),
                    fails_with=("payment-declined",),
                    likely_to_fail=True,
                    compensation=Compensation(name="refund_payment", emits=("payment-refunded",)),
                ),
                Step(name="roll_back", handles=("order-cancelled",), rolls_back=True, changes_nothing=True),
            ),
            ends=("payment-refunded",),
        ),
        Manifest(
            service="warehouse",
            source="https://warehouse.example",
            steps=(
                Step(
                    name="dispatch",
                    handles=("payment-taken",),
                    emits=("goods-dispatched",),
                    fails_with=("item-missing",),
                    compensation=Compensation(name="recall"),
                ),
                Step(name="roll_back", handles=("order-cancelled",), rolls_back=True, changes_nothing=True),
            ),
        ),
    ]


def replace_step(service: str, name: str, /, **changes: Any) -> list[Manifest]:
    """Return the healthy choreography with one step changed."""
    return [
        msgspec.structs.replace(
            manifest,
            steps=tuple(
                msgspec.structs.replace(step, **changes) if (manifest.service, step.name) == (service, name) else step
                for step in manifest.steps
            ),
        )
        for manifest in healthy()
    ]


def replace_manifest(service: str, /, **changes: Any) -> list[Manifest]:
    """Return the healthy choreography with one manifest changed."""
    return [
        msgspec.structs.replace(manifest, **changes) if manifest.service == service else manifest
        for manifest in healthy()
    ]
