"""Cutting: bit-packed masks of the weights above exact thresholds, for many sparsities in one pass."""

from collections.abc import Mapping, Sequence

import numpy as np

from essential_sparsity.pruning.histogram import Piece, codes, from_both_ends
from essential_sparsity.pruning.thresholds import Competitors, Cut

CHUNKS = 3
"""Chunks of 32-bit scores in a piece: fewer calls for each cut, whose threads wait for one another, and still 3 MiB."""


def keep_above_cuts(competitors: Competitors, nums_pruned: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Keep masks of the largest scores, bit-packed by name, one per count; ties keep the earlier weight.

    One pass over the weights for all counts.
    """
    cuts = competitors.cuts_here(nums_pruned)
    masks = [_empty_masks(competitors.sizes) for _ in cuts]
    levels = [(cut.code, _TiesSeen.both_ways(cut) if cut.splits_ties else None) for cut in cuts]
    pieces = competitors.pieces(CHUNKS if competitors.is_wide else 1)
    buffers = np.empty((2, max((stop - start for _, start, stop in pieces), default=0)), dtype=bool)  # a row a thread
    read = competitors.reader()

    def process(piece: Piece, backward: bool) -> None:
        name, start, stop = piece
        values = codes(read(piece, backward))
        keep = buffers[int(backward), : stop - start]
        first, last = start // 8, -(-stop // 8)
        for mask, (code, ties) in zip(masks, levels):
            np.greater_equal(values, code, out=keep)
            if ties is not None:
                ties[backward].prune(values, keep)
            mask[name][first:last] = np.packbits(keep, bitorder="little")

    from_both_ends(pieces, process)
    return masks


def _empty_masks(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Allocate one level's bit-packed masks in one piece, which the kernel can back with large pages."""
    starts = np.cumsum([0, *(-(-n // 8) for n in sizes.values())])
    whole = np.empty(int(starts[-1]), dtype=np.uint8)
    return {name: whole[start:stop] for name, start, stop in zip(sizes, starts, starts[1:])}


class _TiesSeen:
    """How many weights at a cut one thread has passed, from the first weight on or from the last back."""

    def __init__(self, cut: Cut, backward: bool) -> None:
        self._cut = cut
        self._backward = backward
        self._seen = 0

    @classmethod
    def both_ways(cls, cut: Cut) -> tuple["_TiesSeen", "_TiesSeen"]:
        """Count for the thread that goes forward and for the one that goes backward."""
        return cls(cut, False), cls(cut, True)

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
