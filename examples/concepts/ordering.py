"""Events of one key are handled in the order of their commits; events of different keys in any."""

from __future__ import annotations

import anyio
import msgspec

from sagapost import Context, Service, event
from sagapost.sagas.testing import Rehearsal


@event("orders.address-changed.v1")
class AddressChanged(msgspec.Struct, frozen=True):
    order: str
    city: str


shipping = Service("shipping", source="https://shipping.example", ordered=True)
seen: list[AddressChanged] = []


@shipping.on(AddressChanged)
async def write_label(changed: AddressChanged, _ctx: Context) -> None:
    seen.append(changed)


async def main() -> None:
    orders_seen: set[tuple[str, ...]] = set()
    moves: set[tuple[str, ...]] = set()
    for seed in range(10):
        seen.clear()
        async with Rehearsal(seed=seed) as stage:
            await stage.add(shipping)
            for city in ("Paris", "Lyon", "Nice"):
                for order in ("1", "2"):
                    await stage.say(AddressChanged(order, city), key=order)
            await stage.run()
        orders_seen.add(tuple(changed.order for changed in seen))
        moves.update(tuple(changed.city for changed in seen if changed.order == order) for order in ("1", "2"))
    print("in 10 runs the two orders interleave in more than three ways:", len(orders_seen) > 3)
    print("the moves of one order are always seen as:", *moves)


if __name__ == "__main__":
    anyio.run(main)
