"""What runs: the consumer, its subscriptions and workers, retries and retention."""

__all__: list[str] = []
