"""What is declared: the inbox and its handlers, what they may answer, settings, tables, and what is observed."""

__all__: list[str] = []
