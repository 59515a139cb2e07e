"""Guesses for speculative decoding. The engine keeps a guess only where the request would have drawn that very token anyway."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2  # tokens that have to agree before what followed them is guessed again


class Repeats:
    """Guesses that what followed the last few tokens before follows them again (prompt lookup decoding)."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._known = 0

    def guess(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return up to `count` tokens that may come after `tokens`, the same sequence as last time with more at its end."""
        for end in range(self._known, len(tokens)):  # the last tokens themselves are entered next time, when something follows them
            for size in range(SHORTEST, min(LONGEST, end) + 1):
                self._places[tuple(tokens[end - size : end])] = end
        self._known = len(tokens)
        for size in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            place = self._places.get(tuple(tokens[-size:]))
            if place is not None:
                return list(tokens[place : place + count])
        return []
