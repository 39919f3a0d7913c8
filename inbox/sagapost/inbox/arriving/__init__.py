"""What arrives: a message with where it came from, its identity, its turn, and how it is settled there."""

__all__: list[str] = []
