"""Which weights a stored checkpoint keeps, said piece by piece: the same masks as of the loaded model, bit for bit.

One pass counts every weight's scores by bin, which gives the cut and, per weight, how many of the scores at the cut it
holds. With these each weight is masked by itself, in any order and by any thread: ties are kept from the first on.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from threading import Lock
from typing import Any, Protocol, cast

import numpy as np
from torch import Tensor

from essential_sparsity.pruning import Architecture, Pruner
from essential_sparsity.pruning.histogram import BINS, Piece, codes, count_bins, from_both_ends, pieces
from essential_sparsity.pruning.rows import Runs, longest_piece
from essential_sparsity.pruning.scores import Score
from essential_sparsity.pruning.thresholds import Competitors, Cut, PieceReader
from essential_sparsity.streaming.stored import FlatWeight, StoredWeight

WIDE = ("float32", "uint31")
"""Forms of 32 bits, of which a bin is the upper half."""

_LONG = 2**22
"""Weights in one piece of runs beyond which a second one beside it is too much memory."""

Keeper = Callable[[FlatWeight, int, int], np.ndarray]
"""Says which of the weights start … stop are kept: uint8, packed in little bit order. Called from the first on."""

Stage = Callable[[str, int], None]
"""Is told the name of a pass that begins and how many bytes it reads."""


class Choice(Protocol):
    """What is known of the masks before a byte is written."""

    def keeper(self, name: str) -> Keeper:
        """Give what masks one weight, by canonical name, for one thread that goes through it once."""
        ...

    @property
    def num_ties(self) -> int:
        """Count the weights that share the score of a cut which keeps only some of them, of all weights masked yet."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Give what must be remembered to go on after a kill, for JSON."""
        ...


# --- by cuts: any allocation, zeros anywhere --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CountedByWeight:
    """A score that remembers how many of each weight's scores fall into each bin: [2^15] by canonical name.

    Raises ValueError naming the first weight with NaN or infinite entries.
    """

    score: Score
    counts: Mapping[str, np.ndarray]
    reads_weights: bool = field(default=True, init=False)
    needs_statistics: bool = field(default=False, init=False)

    @classmethod
    def of(cls, score: Score, weights: Mapping[str, StoredWeight]) -> "CountedByWeight":
        """Count all weights in one pass over their files."""
        form = score.form(cast(Mapping[str, Tensor], weights))
        sizes = {name: weight.numel() for name, weight in weights.items()}
        counts = {name: np.zeros(BINS, dtype=np.min_scalar_type(size)) for name, size in sizes.items()}
        read, lock = PieceReader(cast(Mapping[str, Tensor], weights), score, form), Lock()

        def process(piece: Piece, backward: bool) -> None:
            found = count_bins(read(piece, backward))
            with lock:
                counts[piece[0]] += found.astype(counts[piece[0]].dtype)

        from_both_ends(pieces(sizes), process)
        for name, counted in counts.items():
            _refuse_non_finite(name, counted, score, form)
        return cls(score, counts)

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give itself: scores that stream need no statistics."""
        return cast(Score, self)

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Give the score's form."""
        return self.score.form(weights)

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Give the score's bits."""
        return self.score.bits(name, flat, start, stop, form)

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray:
        """Add up what was counted: no weight is read again."""
        return np.asarray(np.sum([self.counts[name] for name in weights], axis=0, dtype=np.int64))

    def value(self, code: int, form: str) -> float:
        """Give the score's value."""
        return self.score.value(code, form)

    def describe(self) -> str:
        """Give the score's name."""
        return self.score.describe()


def _refuse_non_finite(name: str, counts: np.ndarray, score: Score, form: str) -> None:
    shift = 16 if form in WIDE else 0
    bad = 0
    for last in np.flatnonzero(counts)[::-1]:
        if math.isfinite(score.value(int(last) << shift, form)):
            break
        bad += int(counts[last])
    if bad:
        raise ValueError(f"weight {name!r} has {bad} entries that are NaN or infinite: mend or replace the checkpoint")


@dataclass(frozen=True, eq=False)
class ByCuts:
    """Keep each weight's scores above its cut, and of those at it the first `num_kept_ties`."""

    score: Score
    form: str
    cuts: Mapping[str, Cut]
    num_ties: int

    @classmethod
    def of(cls, counted: CountedByWeight, groups: Iterable[tuple[Competitors, Cut]], form: str) -> "ByCuts":
        """Share out the ties of each group's cut: 32 bits take a pass over the groups whose equal scores are parted."""
        cuts: dict[str, Cut] = {}
        num_ties = 0
        for competitors, cut in groups:
            ties = _ties(competitors, cut, counted) if cut.splits_ties else dict.fromkeys(competitors.sizes, 0)
            num_ties += sum(ties.values())
            left = cut.num_kept_ties if cut.splits_ties else 0
            for name, own in ties.items():
                kept = min(own, left)
                left -= kept
                cuts[name] = Cut(cut.code, kept, own)
        return cls(counted.score, form, cuts, num_ties)

    def keeper(self, name: str) -> Keeper:
        """Compare one weight's scores with its cut; ties are counted only where some stay and some go."""
        cut = self.cuts[name]
        left = cut.num_kept_ties
        smallest = cut.code + 1 if cut.splits_ties and left == 0 else cut.code

        def keep(flat: FlatWeight, start: int, stop: int) -> np.ndarray:
            nonlocal left
            found = codes(self.score.bits(name, cast(Tensor, flat), start, stop, self.form))
            kept = found >= smallest
            if cut.splits_ties and smallest == cut.code:
                ties = np.flatnonzero(found == cut.code)
                kept[ties[left:]] = False
                left -= min(left, len(ties))
            return np.packbits(kept, bitorder="little")

        return keep

    def as_dict(self) -> dict[str, Any]:
        """Give form, ties and cuts as plain numbers."""
        cuts = {name: [cut.code, cut.num_kept_ties, cut.num_ties] for name, cut in self.cuts.items()}
        return {"form": self.form, "num_ties": self.num_ties, "cuts": cuts}

    @classmethod
    def from_dict(cls, score: Score, content: Mapping[str, Any]) -> "ByCuts":
        """Read what `as_dict` gave."""
        cuts = {name: Cut(*numbers) for name, numbers in content["cuts"].items()}
        return cls(score, content["form"], cuts, content["num_ties"])


def _ties(competitors: Competitors, cut: Cut, counted: CountedByWeight) -> dict[str, int]:
    """Count each weight's scores at the cut: known for 16 bits, by one more pass for 32."""
    if not competitors.is_wide:
        return {name: int(counted.counts[name][cut.code]) for name in competitors.sizes}
    found: dict[bool, dict[str, int]] = {way: dict.fromkeys(competitors.sizes, 0) for way in (False, True)}
    read = competitors.reader()

    def process(piece: Piece, backward: bool) -> None:
        found[backward][piece[0]] += int(np.count_nonzero(codes(read(piece, backward)) == cut.code))

    from_both_ends(competitors.pieces(), process)
    return {name: found[False][name] + found[True][name] for name in competitors.sizes}


# --- by weight: patterns and rows, where each weight is masked without the others -------------------------------------


@dataclass(frozen=True, eq=False)
class ByWeight:
    """Rank each weight alone when its turn comes: N:M and per-row masks depend on nothing else."""

    pruner: Pruner
    sparsity: Fraction | None
    architecture: Architecture
    weights: Mapping[str, StoredWeight]
    ties: dict[str, int] = field(default_factory=dict)
    _turn: Any = field(default_factory=Lock, init=False)

    def keeper(self, name: str) -> Keeper:
        """Mask one weight, of which only windows are in memory, and give its bits in pieces.

        Runs that lie across the whole weight need all of it at once: of such weights one is masked at a time.
        """
        alone = {name: cast(Tensor, self.weights[name])}
        with self._turn if self._is_read_whole(name) else nullcontext():
            masks = self.pruner.rank(alone, architecture=self.architecture).masks(self.sparsity)
        self.ties[name] = masks.num_ties
        return lambda flat, start, stop: masks.bits[name][start // 8 : -(-stop // 8)]

    def _is_read_whole(self, name: str) -> bool:
        runs = runs_of(self.pruner, {name: self.weights[name].shape}, self.architecture)
        return (
            runs is not None
            and max(stop - start for _, start, stop in runs[name].pieces(name, longest_piece("float32"))) > _LONG
        )

    @property
    def num_ties(self) -> int:
        """Add up the ties of the weights masked yet."""
        return sum(self.ties.values())

    def as_dict(self) -> dict[str, Any]:
        """Give the ties of the weights masked yet; nothing else need be remembered."""
        return {"ties": dict(self.ties)}


def runs_of(
    pruner: Pruner, shapes: Mapping[str, tuple[int, ...]], architecture: Architecture
) -> dict[str, Runs] | None:
    """Give the runs that a pruner cuts each weight into, None where weights compete; raises ValueError for misfits."""
    return pruner.pattern.runs(shapes, architecture) or pruner.allocation.runs(shapes, architecture)


def choose(
    pruner: Pruner,
    weights: Mapping[str, StoredWeight],
    sparsity: Fraction | None,
    architecture: Architecture,
    *,
    known: Mapping[str, Any] | None = None,
    stage: Stage = lambda name, num_bytes: None,
) -> Choice:
    """Rank stored weights and cut at one sparsity, reading windows alone; `stage` is told each pass.

    `known` is what `as_dict` of the same choice gave before a kill: then nothing is read.
    """
    shapes = {name: weight.shape for name, weight in weights.items()}
    if pruner.allocation.splits(list(shapes), architecture):
        raise ValueError(
            f"pruner {pruner.allocation.describe()} splits fused matrices by kind, which prune does not: name whole "
            "weights, or use essential-sparsity evaluate"
        )
    if runs_of(pruner, shapes, architecture):
        if known is None and pruner.score.reads_weights:
            stage("check", _num_bytes(weights))
            CountedByWeight.of(pruner.score, weights)  # refuses what is not finite before a byte is written
        unheard = {name: StoredWeight(weight.descriptor, weight.place) for name, weight in weights.items()}
        return ByWeight(pruner, sparsity, architecture, unheard, dict((known or {}).get("ties", {})))
    if known:
        return ByCuts.from_dict(pruner.score, known)
    return _count_and_cut(pruner, weights, sparsity, architecture, stage)


def _count_and_cut(
    pruner: Pruner,
    weights: Mapping[str, StoredWeight],
    sparsity: Fraction | None,
    architecture: Architecture,
    stage: Stage,
) -> ByCuts:
    """Count scores by weight, then cut."""
    stage("count", _num_bytes(weights) if pruner.score.reads_weights else 0)
    counted = CountedByWeight.of(pruner.score, weights)
    return cut(pruner, counted, weights, sparsity, architecture, stage=stage)


def cut(
    pruner: Pruner,
    counted: CountedByWeight,
    weights: Mapping[str, StoredWeight],
    sparsity: Fraction | None,
    architecture: Architecture,
    *,
    stage: Stage = lambda name, num_bytes: None,
) -> ByCuts:
    """Cut counted weights at one sparsity, each group where its allocation says: 16 bits read no weight again."""
    stored, allocation = cast(Mapping[str, Tensor], weights), pruner.allocation
    shapes = {name: weight.shape for name, weight in weights.items()}
    form = pruner.score.form(stored)
    groups, nums_pruned = allocation.groups(list(shapes)), allocation.nums_pruned(sparsity, shapes, architecture)
    read_again = form in WIDE and pruner.score.reads_weights
    if form in WIDE:
        stage("refine", _num_bytes(weights) if read_again else 0)
    found: list[tuple[Competitors, Cut]] = []
    for group, num_pruned in zip(groups, nums_pruned, strict=True):
        sizes = {name: weights[name].numel() for name in group}
        competitors = Competitors(stored, sizes, cast(Score, counted), form)
        found.append((competitors, competitors.cut([num_pruned])[0]))
    parted = [name for competitors, cut in found if cut.splits_ties for name in competitors.sizes]
    if form in WIDE and parted:
        stage("ties", _num_bytes({name: weights[name] for name in parted}) if read_again else 0)
    return ByCuts.of(counted, found, form)


def _num_bytes(weights: Mapping[str, StoredWeight]) -> int:
    return sum(weight.place.stop - weight.place.start for weight in weights.values())
