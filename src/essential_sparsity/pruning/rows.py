"""Runs: keep the largest scores of each short run of weights, along inputs or outputs: N:M patterns and rows.

Letters: a weight is seen as [R, L, I]: R rows of L weights that lie I apart; runs of M weights follow one another
along L; the r = L mod M weights left over are a row's tail.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import Tensor

from essential_sparsity.pruning import histogram
from essential_sparsity.pruning.histogram import Piece, codes, from_both_ends
from essential_sparsity.pruning.scores import Score
from essential_sparsity.pruning.sparsity import num_pruned
from essential_sparsity.pruning.thresholds import Competitors, PieceReader

WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Words with one byte for each weight of a run; runs of other lengths are partitioned."""

CHUNKS = {2: 2, 4: 3}
"""Chunks in a piece by bytes of a code: fewer calls, whose threads wait for one another, in 5 % of the weights."""

LARGEST_FINITE = {"float32": 0x7F7FFFFF, "bfloat16": 0x7F7F, "float16": 0x7BFF}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Runs:
    """One weight as runs: `rows` × `length` × `inner`, cut along `length` into runs of `of` that compete.

    `keep` of each run stay, or, where it is None, as many as a sparsity leaves of `of`. With `pad` a row's tail counts
    as a run filled up with zeros, which go first; without, the tail stays dense.
    """

    rows: int
    length: int
    inner: int
    of: int
    keep: int | None = None
    pad: bool = True

    @classmethod
    def along(cls, shape: Shape, axis: int, *, parts: int = 1) -> "Runs":
        """See a matrix as rows along one axis, each one run; a fused matrix has `parts`, which runs do not cross."""
        height, width = shape[0], math.prod(shape[1:])
        length = (width if axis else height) // parts
        rows, inner = (height * parts, 1) if axis else (parts, width)
        return cls(rows, length, inner, length)

    @property
    def num(self) -> int:
        """Number of weights."""
        return self.rows * self.length * self.inner

    @property
    def tail(self) -> int:
        """Number of weights at a row's end that fill no run."""
        return self.length % self.of

    def kept(self, sparsity: Fraction) -> int:
        """Give how many weights a run keeps."""
        if self.keep is None:
            return self.of - num_pruned(sparsity, self.of)
        return self.keep if sparsity else self.of

    def kept_of_tail(self, sparsity: Fraction) -> int:
        """Give how many weights of a row's tail stay."""
        return min(self.kept(sparsity), self.tail) if self.pad else self.tail

    def num_pruned(self, sparsity: Fraction) -> int:
        """Count the weights that go."""
        full = self.length // self.of * (self.of - self.kept(sparsity))
        return self.rows * self.inner * (full + self.tail - self.kept_of_tail(sparsity))

    def pieces(self, name: str, longest: int) -> list[Piece]:
        """Cut the weight into pieces of some `longest` weights: whole rows that start at a whole byte of its mask."""
        runs = 1 if self.tail else self.length // self.of  # without a tail a row may be cut between runs
        size = self.length // runs * self.inner
        unit = 8 // math.gcd(8, size)
        step = max(unit, longest // size // unit * unit) * size
        return [(name, start, min(start + step, self.num)) for start in range(0, self.num, step)]

    def blocks(self, values: np.ndarray, longest: int) -> list[np.ndarray]:
        """View one piece, flat, as [rows, length, some of inner], in blocks of some `longest` weights each."""
        length = self.length if self.tail else self.of
        whole = values.reshape(-1, length, self.inner)
        columns = max(1, longest // (len(whole) * length))
        return [whole[:, :, start : start + columns] for start in range(0, self.inner, columns)]


class Scratch:
    """Arrays that a thread uses again for every piece: fresh ones of that size cost a page fault for each 4 KiB."""

    def __init__(self) -> None:
        self._held: dict[object, np.ndarray] = {}

    def array(self, name: object, shape: Shape, dtype: type | np.dtype) -> np.ndarray:
        """Give the array of this name, with whatever it held before."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or held.nbytes < size:
            held = self._held[name] = np.empty(size, dtype=np.uint8)
        return held[:size].view(dtype).reshape(shape)


def longest_piece(form: str) -> int:
    """Give about how many scores of a form a piece holds."""
    return CHUNKS[2 if form in ("float16", "bfloat16") else 4] * histogram.CHUNK


class RunCutter:
    """Cuts weights run by run: one pass over the weights for any number of sparsities."""

    def __init__(self, weights: Mapping[str, Tensor], runs: Mapping[str, Runs], score: Score, form: str) -> None:
        self._weights = weights
        self._runs = runs
        self._score = score
        self._form = form
        self._longest = longest_piece(form)
        self._found: dict[Fraction, tuple[dict[str, np.ndarray], int]] = {}
        self._counts: dict[str, np.ndarray] = {}
        self._original: dict[str, np.ndarray] = {}

    def start(self, only: Fraction | None) -> None:
        """Cut at the only sparsity there is (an N:M pattern's), or count, to notice weights that change later."""
        if only is None:
            self._counts = self._original = self._count()
        else:
            self._found[only] = self._cut([only])[0]

    def cut(self, sparsities: Sequence[Fraction]) -> list[tuple[dict[str, np.ndarray], int]]:
        """Give per sparsity the bit-packed masks by name, and the number of weights whose ties its cuts split."""
        for name, zeroed in self._zeroed().items():
            count = min((self._runs[name].num_pruned(s) for s in sparsities), default=zeroed)
            if 0 < zeroed > count:
                raise ValueError(
                    f"pruning {count:,} weights of {name!r} comes after {zeroed:,} were zeroed: "
                    "apply rising sparsities, or rank a fresh copy"
                )
        missing = [sparsity for sparsity in sparsities if sparsity not in self._found]
        found = self._found | dict(zip(missing, self._cut(missing)))
        return [found[sparsity] for sparsity in sparsities]

    def recount(self) -> None:
        """Count again after weights were zeroed in place; raises ValueError where they changed in any other way."""
        if not self._original:
            return
        self._counts = self._count()
        if any((self._counts[name][1:] > self._original[name][1:]).any() for name in self._original):
            raise ValueError("the weights changed since they were ranked: rank them again")

    def _count(self) -> dict[str, np.ndarray]:
        """Count each weight's scores per bin."""
        return {
            name: Competitors(self._weights, {name: runs.num}, self._score, self._form).counts
            for name, runs in self._runs.items()
        }

    def _zeroed(self) -> dict[str, int]:
        """Count by weight the scores that became zero since the ranking."""
        return {name: int(now[0]) - int(self._original[name][0]) for name, now in self._counts.items()}

    def _cut(self, sparsities: Sequence[Fraction]) -> list[tuple[dict[str, np.ndarray], int]]:
        """Cut in one pass; raises ValueError naming a weight with scores that are not finite."""
        masks = [{n: np.empty(-(-r.num // 8), dtype=np.uint8) for n, r in self._runs.items()} for _ in sparsities]
        ties = np.zeros((2, len(sparsities)), dtype=np.int64)  # one row per thread
        read = PieceReader(self._weights, self._score, self._form)
        scratches = Scratch(), Scratch()

        def process(piece: Piece, backward: bool) -> None:
            name, start, stop = piece
            bits, runs, scratch = read(piece, backward), self._runs[name], scratches[int(backward)]
            keeps = scratch.array("keeps", (len(sparsities), stop - start), bool)
            outs = zip(*(runs.blocks(keep, self._longest) for keep in keeps))
            for block, out in zip(runs.blocks(bits, self._longest), outs):
                values = codes(block, out=scratch.array("codes", block.shape, block.dtype))
                self._refuse_non_finite(name, values)
                ties[int(backward)] += _cut_block(values, runs, sparsities, out, scratch)
            for mask, keep in zip(masks, keeps):
                mask[name][start // 8 : -(-stop // 8)] = np.packbits(keep, bitorder="little")

        pieces = [piece for name, runs in self._runs.items() for piece in runs.pieces(name, self._longest)]
        from_both_ends(pieces if sparsities else [], process)
        return list(zip(masks, ties.sum(axis=0).tolist()))

    def smallest_kept(self, masks: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Give the smallest kept score of each weight under these masks; infinity where nothing is kept."""
        smallest = dict.fromkeys(self._runs, math.inf)
        read = PieceReader(self._weights, self._score, self._form)
        for name, runs in self._runs.items():
            for piece in runs.pieces(name, self._longest):
                keep = np.unpackbits(masks[name][piece[1] // 8 : -(-piece[2] // 8)], bitorder="little").view(bool)
                kept = codes(read(piece, False))[keep[: piece[2] - piece[1]]]
                if len(kept):
                    smallest[name] = min(smallest[name], self._score.value(int(kept.min()), self._form))
        return smallest

    def _refuse_non_finite(self, name: str, values: np.ndarray) -> None:
        largest = LARGEST_FINITE.get(self._form)
        if largest is not None and values.max(initial=0) > largest:
            bad = int(np.count_nonzero(values > largest))
            raise ValueError(
                f"weight {name!r} has {bad} entries that are NaN or infinite: mend or replace the checkpoint"
            )


def _cut_block(
    values: np.ndarray, runs: Runs, sparsities: Sequence[Fraction], outs: Sequence[np.ndarray], scratch: Scratch
) -> np.ndarray:
    """Fill keep masks of one block [R, L, I], one per sparsity; give the numbers of split ties."""
    full = values.shape[1] // runs.of * runs.of
    ties = np.zeros(len(sparsities), dtype=np.int64)
    if full:
        kept = [runs.kept(sparsity) for sparsity in sparsities]
        inside = [_as_runs(out[:, :full], runs.of) for out in outs]
        ties += _keep_along(_as_runs(values[:, :full], runs.of), kept, inside, scratch)
    if full < values.shape[1]:
        kept = [runs.kept_of_tail(sparsity) for sparsity in sparsities]
        ties += _keep_along(values[:, full:], kept, [out[:, full:] for out in outs], scratch)
    return ties


def _as_runs(values: np.ndarray, of: int) -> np.ndarray:
    """View [R, G M, I] as [R, G, M, I]."""
    return values.reshape(len(values), -1, of, values.shape[2])


def _keep_along(
    values: np.ndarray, nums_kept: Sequence[int], outs: Sequence[np.ndarray], scratch: Scratch
) -> list[int]:
    """Keep the largest of each run along axis −2 of [..., M, I]: fills bool `outs` and gives the split ties."""
    runs = np.ascontiguousarray(np.moveaxis(values, -2, -1))
    found = keep_largest(runs.reshape(-1, runs.shape[-1]), nums_kept, scratch)
    for (keep, _), out in zip(found, outs):
        np.moveaxis(out, -2, -1)[...] = keep.reshape(runs.shape)
    return [ties for _, ties in found]


# --- the largest of each run ------------------------------------------------------------------------------------------


def keep_largest(
    runs: np.ndarray, nums_kept: Sequence[int], scratch: Scratch | None = None
) -> list[tuple[np.ndarray, int]]:
    """Keep the `num_kept` largest of each run [n, M] of unsigned codes, for each number; ties keep the earlier.

    Gives bool masks [n, M], which lie in `scratch`, and how many codes equal the smallest kept one of a run that keeps
    only some of those.
    """
    length = runs.shape[1]
    numbers = sorted({k for k in nums_kept if 0 < k < length})
    method = _by_bytes if length in WORDS and sys.byteorder == "little" else _by_partition
    found = dict(zip(numbers, method(runs, numbers, scratch or Scratch()))) if numbers else {}
    found |= {k: (np.full(runs.shape, k > 0), 0) for k in nums_kept if not 0 < k < length}
    return [found[k] for k in nums_kept]


def _by_bytes(runs: np.ndarray, nums_kept: Sequence[int], scratch: Scratch) -> list[tuple[np.ndarray, int]]:
    """Count in one byte per weight how many of its run it beats: a run of M bytes is one word of M bytes.

    Neighbours at distance d are compared all at once. Byte i of `bits` tells whether weight i beats the later weight
    i + d; if so, i has one more win, and i + d one fewer than the d it could have.
    """
    length, codes_in_row = runs.shape[1], runs.reshape(-1)
    word = WORDS[length]
    wins, tied = (scratch.array(name, (len(runs),), word) for name in ("wins", "tied"))
    wins[:] = _word(range(length))  # against the earlier, had weight j lost to none
    any_ties = False
    compared = scratch.array("compared", codes_in_row.shape, bool)
    bits = compared.view(word)
    for distance in range(1, length):
        inside = word(_word([1] * (length - distance)))  # pairs across two runs say nothing
        earlier, later = codes_in_row[:-distance], codes_in_row[distance:]
        compared[-distance:] = False
        if np.equal(earlier, later, out=compared[:-distance]).any():  # hardly ever in fp32: what follows is spared
            bits &= inside
            np.bitwise_or(bits, tied if any_ties else bits, out=tied)
            any_ties = True
        np.greater_equal(earlier, later, out=compared[:-distance])
        bits &= inside
        bits *= word((1 - 256**distance) % 256**length)  # one more here, one fewer `distance` bytes on
        wins += bits
    rows = runs[np.flatnonzero(tied != 0)] if any_ties else runs[:0]  # words take flatnonzero 8 times as long
    found = []
    for k in nums_kept:
        keep = scratch.array(("keep", k), (len(runs),), word) if len(nums_kept) > 1 else wins
        np.add(wins, word(_word([128 - (length - k)] * length)), out=keep)  # bit 7 of a byte: at least M − k wins
        keep >>= word(7)
        keep &= word(_word([1] * length))
        found.append((keep.view(bool).reshape(runs.shape), _count_split_ties(rows, k)))
    return found


def _word(values: Iterable[int]) -> int:
    """Pack one byte per weight of a run, the first in the lowest."""
    return sum(value << (8 * place) for place, value in enumerate(values))


def _count_split_ties(rows: np.ndarray, num_kept: int) -> int:
    """Count the codes [n, M] that equal the smallest kept one of their run where it keeps only some of those."""
    ordered = np.sort(rows, axis=1)
    last = ordered[:, -num_kept]
    split = ordered[:, -num_kept - 1] == last
    return int(np.count_nonzero(rows[split] == last[split, None]))


def _by_partition(runs: np.ndarray, nums_kept: Sequence[int], scratch: Scratch) -> list[tuple[np.ndarray, int]]:
    """Partition each run at all cuts, then resolve the few runs in which a cut splits equal codes."""
    places = [runs.shape[1] - k for k in nums_kept]
    last = np.partition(runs, places, axis=1)[:, places]
    found = []
    for column, k in enumerate(nums_kept):
        smallest = last[:, column, None]
        keep = runs >= smallest
        split = np.flatnonzero(np.count_nonzero(keep, axis=1) > k)
        equal = runs[split] == smallest[split]
        above = np.count_nonzero(runs[split] > smallest[split], axis=1)
        keep[split] &= ~(equal & (np.cumsum(equal, axis=1) > (k - above)[:, None]))
        found.append((keep, int(np.count_nonzero(equal))))
    return found
