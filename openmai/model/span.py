"""What of the work this process does, as the model sees it: all of it, unless `parallel/` puts other objects here."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Span:
    """Which tokens of each row pass through this process. The default is a process that works alone."""

    parts: int = 1
    "processes that share each row"
    divides_positions: bool = False
    "whether attention must look for keys in other processes"

    def cut(self, x_BT: Tensor, fill: int = 0) -> Tensor:
        """Return this process's tokens of whole rows (B, T), whose attention it computes; `fill` is put where rows do not divide."""
        return x_BT

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the processes that share these rows, without gradient."""
        return x


class VocabularyPart(Protocol):
    """A part of the vocabulary; the processes that hold the other parts see the same tokens."""

    first: int
    "number of the first token that is here"

    def enter(self, x_BTD: Tensor) -> Tensor:
        """Return the stream as the head needs it: all tokens; gradients are summed over the parts on their way back."""

    def total(self, x: Tensor) -> Tensor:
        """Return the sum over the parts; gradients pass as they are, for every part goes on with the same."""

    def largest(self, x: Tensor) -> Tensor:
        """Return the greatest of each value over the parts, without gradient."""
