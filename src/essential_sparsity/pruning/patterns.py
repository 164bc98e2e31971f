"""Patterns: where zeros may lie. A pattern turns scores and cuts into bit-packed masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np

from essential_sparsity.pruning.histogram import Piece, codes, from_both_ends
from essential_sparsity.pruning.thresholds import Competitors, Cut


class Pattern(Protocol):
    """What a ranking asks of a pattern."""

    def resolve(self, sparsity: Fraction | None) -> Fraction:
        """Give the sparsity that is meant, or raise ValueError where it contradicts the pattern."""
        ...

    def keep(self, competitors: Competitors, nums_pruned: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Build one mask per count: bit-packed uint8 arrays by name."""
        ...

    def describe(self) -> str:
        """Name the pattern and its settings in one line."""
        ...


@dataclass(frozen=True)
class Unstructured:
    """Zeros may lie anywhere."""

    def resolve(self, sparsity: Fraction | None) -> Fraction:
        """None means dense."""
        return Fraction(0) if sparsity is None else sparsity

    def keep(self, competitors: Competitors, nums_pruned: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Keep mask of the largest scores; ties keep the earlier weight. One pass over the weights for all counts."""
        cuts = competitors.cut(nums_pruned)
        masks = [{name: np.empty(-(-n // 8), dtype=np.uint8) for name, n in competitors.sizes.items()} for _ in cuts]
        ties = [(_TiesSeen(cut, False), _TiesSeen(cut, True)) for cut in cuts]
        read = competitors.reader()

        def process(piece: Piece, backward: bool) -> None:
            name, start, stop = piece
            values = codes(read(piece, backward))
            keep = np.empty(len(values), dtype=bool)
            for mask, cut, seen in zip(masks, cuts, ties):
                np.greater_equal(values, cut.code, out=keep)
                if cut.splits_ties:
                    seen[backward].prune(values, keep)
                mask[name][start // 8 : -(-stop // 8)] = np.packbits(keep, bitorder="little")

        from_both_ends(competitors.pieces(), process)
        return masks

    def describe(self) -> str:
        """Name the pattern."""
        return "unstructured"


class _TiesSeen:
    """How many weights at a cut one thread has passed, from the first weight on or from the last back."""

    def __init__(self, cut: Cut, backward: bool) -> None:
        self._cut = cut
        self._backward = backward
        self._seen = 0

    def prune(self, values: np.ndarray, keep: np.ndarray) -> None:
        """Clear the ties of this piece that come after the kept ones in fixed order; `keep` has all of them set."""
        cut = self._cut
        if self._backward and self._seen >= cut.num_ties - cut.num_kept_ties:
            return
        equal = values == cut.code
        if not self._backward and self._seen >= cut.num_kept_ties:
            keep[equal] = False
            return
        found = int(np.count_nonzero(equal))
        if found == 0:
            return
        first = cut.num_ties - self._seen - found if self._backward else self._seen
        keep[np.flatnonzero(equal)[max(0, cut.num_kept_ties - first) :]] = False
        self._seen += found
