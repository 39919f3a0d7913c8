"""What is kept in the database: dedup keys, parked messages and their order, attempts."""

__all__: list[str] = []
