"""Topic patterns as AMQP 0-9-1 defines them: `*` is one dot-separated word, `#` any number of words, also none."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["TopicPattern"]


class TopicPattern:
    """One compiled pattern, for example ``orders.*.v1`` or ``payments.#``."""

    __slots__ = ("_words", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._words = pattern.split(".")

    def matches(self, topic: str) -> bool:
        """Return whether `topic` is covered by the pattern."""
        return topic == self.pattern or _match(self._words, topic.split("."))


def _match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    # reachable[i]: the pattern read so far can have consumed exactly the first i words. Linear in the product of both
    # lengths, where backtracking over several `#` would be exponential.
    reachable = [True] + [False] * len(words)
    for part in pattern:
        if part == "#":
            first = reachable.index(True)
            reachable = [i >= first for i in range(len(words) + 1)]
        else:
            steps = (reachable[i] and part in ("*", words[i]) for i in range(len(words)))
            reachable = [False, *steps]
        if True not in reachable:
            return False
    return reachable[-1]
