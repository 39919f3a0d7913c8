"""From a message to its end: users' functions guarded, one transaction or a group's, and the verdict."""

__all__: list[str] = []
