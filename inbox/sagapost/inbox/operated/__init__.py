"""What operators do with parked messages: look, redrive, discard, edit."""

__all__: list[str] = []
