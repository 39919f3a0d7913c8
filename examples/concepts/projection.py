"""Where is order 4711? Fold its events, and compare with what the services declare."""

from __future__ import annotations

import anyio

from examples.concepts.choreography import loyalty, orders, payment, warehouse
from examples.concepts.events import OrderPlaced, short
from sagapost import Event
from sagapost.sagas.choreography import Choreography
from sagapost.sagas.testing import Rehearsal


def state(events: list[Event], choreography: Choreography) -> str:
    published = {event.type for event in events}
    expected = sorted(
        f"{manifest.service}.{step.name}"
        for type_ in published
        for manifest, step in choreography.next_steps(type_)
        if not published & set(step.emits)
    )
    return f"waits for {', '.join(expected)}" if expected else "completed"


async def main() -> None:
    async with Rehearsal() as stage:
        for service in (orders, payment, warehouse, loyalty):
            await stage.add(service)
        await stage.say(OrderPlaced("4711"), saga="order-4711")
        await stage.run()
        for count in range(1, len(stage.events) + 1):
            seen = stage.events[:count]
            print(f"{short(seen[-1].type)}: {state(seen, stage.choreography)}")


if __name__ == "__main__":
    anyio.run(main)
