"""Exact thresholds: where a ranking is cut so that the count is right to the weight, whatever the ties.

One pass counts bins (histogram.py), one refining pass counts inside the few bins that cuts fall into, for all cuts.
Letters: N weights of a group that compete, k of them pruned, a *code* is a score read as an unsigned integer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from torch import Tensor

from essential_sparsity.pruning.histogram import (
    BINS,
    Flats,
    Piece,
    count_bins,
    from_both_ends,
    lower,
    pieces,
    upper,
)
from essential_sparsity.pruning.scores import Score

_REFINED_TOGETHER = 24
"""Bins that one refining pass counts: 2^16 counters of 4 bytes for each."""


@dataclass(frozen=True)
class Cut:
    """Keep the weights above `code`, and of the `num_ties` weights at it the first `num_kept_ties` in fixed order."""

    code: int
    num_kept_ties: int
    num_ties: int

    @property
    def splits_ties(self) -> bool:
        """Some of the weights with the same score are kept and some are pruned."""
        return self.num_kept_ties < self.num_ties


class Competitors:
    """Weights that are ranked together: their scores piece by piece, and how many fall into each bin."""

    def __init__(self, weights: Mapping[str, Tensor], sizes: Mapping[str, int], score: Score, form: str) -> None:
        self.sizes = sizes
        self.total = int(self.added(np.array([sum(sizes.values())]))[0])
        self._weights = weights
        self._score = score
        self._form = form
        self._counts = self._original = self._count()
        self._cuts: dict[int, Cut] = {}

    def reader(self) -> "PieceReader":
        """Open the weights for one pass."""
        return PieceReader(self._weights, self._score, self._form)

    @property
    def counts(self) -> np.ndarray:
        """How many weights fall into each bin: [2^15]."""
        return self._counts

    @property
    def is_wide(self) -> bool:
        """Scores have 32 bits, of which a bin is the upper half; else a bin is one score."""
        return self._form in ("float32", "uint31")

    def pieces(self, chunks: int = 1) -> list[Piece]:
        """List the pieces of all weights in the fixed order."""
        return pieces(self.sizes, chunks)

    def cut(self, nums_pruned: Sequence[int]) -> list[Cut]:
        """Find the cuts that prune exactly so many weights each; a cut found before costs nothing."""
        zeroed = int(self._counts[0])
        if zeroed > self._original[0] and min(nums_pruned, default=zeroed) < zeroed:
            raise ValueError(
                f"pruning {min(nums_pruned):,} of {self.total:,} weights comes after {zeroed:,} were zeroed: "
                "apply rising sparsities, or rank a fresh copy"
            )
        missing = sorted(set(nums_pruned) - set(self._cuts))
        for start in range(0, len(missing), _REFINED_TOGETHER):
            self._find(missing[start : start + _REFINED_TOGETHER])
        return [self._cuts[k] for k in nums_pruned]

    def cuts_here(self, nums_pruned: Sequence[int]) -> list[Cut]:
        """Give the cuts as they fall among the weights that lie here: all of them (but see shards.py)."""
        return self.cut(nums_pruned)

    def added(self, counts: np.ndarray) -> np.ndarray:
        """Add counts over all that holds a part of the weights: here is all of them (but see shards.py)."""
        return counts

    def recount(self) -> None:
        """Count again after weights were zeroed in place, smallest first: larger cuts stay where they were.

        Raises ValueError where the weights changed in any other way.
        """
        counts = self._count()
        changed = np.flatnonzero(counts != self._original)
        last = int(changed[-1]) if len(changed) else 0
        if last and (counts[1:last].any() or counts[last] > self._original[last]):
            raise ValueError("the weights changed since they were ranked: rank them again")
        self._counts, self._cuts = counts, {}

    def _count(self) -> np.ndarray:
        """Count the weights per bin, in four bytes each where that is enough."""
        named = {name: self._weights[name] for name in self.sizes}
        counts = self._score.histogram(named, self._form)
        counts = self.added(self._count_scores() if counts is None else counts)
        return counts.astype(np.min_scalar_type(self.total))

    def _count_scores(self) -> np.ndarray:
        counts = np.zeros((2, BINS), dtype=np.int64)
        read = self.reader()

        def process(piece: Piece, backward: bool) -> None:
            counts[int(backward)] += count_bins(read(piece, backward))

        from_both_ends(self.pieces(), process)
        return counts.sum(axis=0)

    def _find(self, nums_pruned: Sequence[int]) -> None:
        """Find at most `_REFINED_TOGETHER` cuts and remember them."""
        running = np.cumsum(self._counts, dtype=np.int64)
        bins = {k: int(np.searchsorted(running, k, side="right")) for k in nums_pruned if 0 < k < self.total}
        wide = self.is_wide
        inside = self._count_inside(sorted(set(bins.values()))) if wide and bins else {}
        for k in nums_pruned:
            if k == 0 or k == self.total:
                last = 2**31 if wide else BINS
                self._cuts[k] = Cut(0 if k == 0 else last, 0, 0)
                continue
            found = bins[k]
            before = int(running[found]) - int(self._counts[found])
            if not wide:
                self._cuts[k] = Cut(found, int(running[found]) - k, int(self._counts[found]))
                continue
            refined = before + np.cumsum(inside[found], dtype=np.int64)
            place = int(np.searchsorted(refined, k, side="right"))
            self._cuts[k] = Cut((found << 16) | place, int(refined[place]) - k, int(inside[found][place]))

    def _count_inside(self, bins: Sequence[int]) -> dict[int, np.ndarray]:
        """Count lower halfwords inside each of these bins, in one pass over all weights: [2^16] for each bin."""
        slot = np.zeros(BINS, dtype=np.int64)
        slot[list(bins)] = np.arange(len(bins)) << 16
        chosen = np.zeros(2 * BINS, dtype=bool)  # by upper halfword, either sign
        chosen[list(bins)] = True
        chosen[BINS:] = chosen[:BINS]
        counts = np.zeros(len(bins) << 16, dtype=np.min_scalar_type(self.total))
        one = counts.dtype.type(1)
        read, lock = self.reader(), Lock()

        def process(piece: Piece, backward: bool) -> None:
            bits = read(piece, backward)
            hits = np.flatnonzero(chosen.take(bits >> 16))
            found = bits[hits]
            places = slot[upper(found)] + lower(found)
            with lock:
                np.add.at(counts, places, one)

        from_both_ends(self.pieces(), process)
        return dict(zip(bins, self.added(counts).reshape(len(bins), -1)))


class PieceReader:
    """Scores of one pass: `read(piece, backward)` gives a piece's bits, holding one weight per thread."""

    def __init__(self, weights: Mapping[str, Tensor], score: Score, form: str) -> None:
        self._flats = Flats(weights)
        self._score = score
        self._form = form

    def __call__(self, piece: Piece, backward: bool) -> np.ndarray:
        """Read one piece: uint32 or uint16 [n]."""
        name, start, stop = piece
        return self._score.bits(name, self._flats.get(name, backward), start, stop, self._form)
