"""StreamTech sells records. Its order fulfilment is a choreographed saga over services with a database each.

`orders` places orders and records how they end; `warehouse` reserves stock. Each declares its own view of the events
it handles: services share the names and shapes of events, never code. `demo` runs them together.
"""
