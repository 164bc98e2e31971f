"""Weights in shards over ranks (DTensors, as FSDP2 leaves them), ranked exactly: histograms add, ties are scanned.

A weight is cut along its first dimension, rank after rank, the last ranks with fewer rows or none: ranks in order are
the weight in row-major order. All ranks call alike, and each gets the whole model's masks, a bit per weight.
Letters: W ranks, T weights (tensors), C cuts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from essential_sparsity.pruning.histogram import Piece, codes, from_both_ends
from essential_sparsity.pruning.scores import Score
from essential_sparsity.pruning.thresholds import Competitors, Cut

REMEDY = "give trainer.strategy=ddp, which holds whole weights"


def own_part(weight: Tensor) -> Tensor:
    """Give the part of a weight that this rank counts: its shard, or nothing where another rank has the same one."""
    if not isinstance(weight, DTensor):
        return weight
    mesh = weight.device_mesh
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    is_copy = any(isinstance(p, Replicate) and at for p, at in zip(weight.placements, coordinate, strict=True))
    local = weight.to_local()
    return local.flatten()[:0] if is_copy else local


def held_part(weight: Tensor) -> Tensor:
    """Give the part of a weight, or of a gradient, that lies on this rank: the same memory."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def held_rows(whole: Tensor, weight: Tensor) -> Tensor:
    """Give what belongs to the rows of a weight that lie on this rank, from what belongs to the whole weight."""
    if not isinstance(weight, DTensor) or isinstance(_placement("weight", weight), Replicate):
        return whole
    first = _first_row(weight)
    return whole[first : first + len(weight.to_local())]


def _placement(name: str, weight: DTensor) -> Shard | Replicate:
    """Give how a weight lies over ranks; ValueError for anything but rows over one row of ranks."""
    placement = weight.placements[0] if len(weight.placements) == 1 else None
    if isinstance(placement, Replicate) or (type(placement) is Shard and placement.dim == 0):
        return placement
    raise ValueError(
        f"weight {name!r} lies as {weight.placements} over ranks: only shards of the first dimension are ranked, "
        "as fully_shard on one row of ranks leaves them"
    )


def _first_row(weight: DTensor) -> int:
    """Give the index of the first row of this rank's shard: each has as many as the first one, as long as there are."""
    mesh = weight.device_mesh
    return min(len(weight), mesh.get_local_rank() * -(-len(weight) // mesh.size()))


class Shards:
    """This rank's part of all weights, and how numbers and masks of the parts become the whole's."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.local: dict[str, Tensor] = {}
        self.first: dict[str, int] = {}  # flat index of the part's first weight in the whole
        self.shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        meshes = [weight.device_mesh for weight in weights.values() if isinstance(weight, DTensor)]
        self._group = meshes[0].get_group() if meshes[0].ndim == 1 else None
        for name, weight in weights.items():
            if not isinstance(weight, DTensor):
                raise ValueError(f"weight {name!r} lies whole on a rank, others in shards: shard all or none")
            is_copy = isinstance(_placement(name, weight), Replicate)
            self.local[name] = own_part(weight.detach())
            self.first[name] = 0 if is_copy else _first_row(weight) * math.prod(weight.shape[1:])

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "Shards | None":
        """Give the shards of weights; None where they lie here as a whole."""
        first = next(iter(weights))  # the others of a lazy mapping are not looked at
        return cls({name: weights[name] for name in weights}) if isinstance(weights[first], DTensor) else None

    @property
    def local_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of this rank's parts: some of the rows, all that runs along inputs."""
        return {name: (len(part), *self.shapes[name][1:]) for name, part in self.local.items()}

    def refuse(self, what: str) -> ValueError:
        """Give the error for a part of a pruner that has to see whole weights."""
        return ValueError(f"{what} reads whole weights, and these lie in shards over ranks (fsdp2): {REMEDY}")

    def score(self, score: Score) -> Score:
        """Give a score that counts places in the whole weight."""
        return score if score.reads_weights else _InPlace(score, self.first)

    def added(self, counts: np.ndarray) -> np.ndarray:
        """Add integers over ranks: int64, of the same shape."""
        tensor = self._here(counts.astype(np.int64))
        torch.distributed.all_reduce(tensor, group=self._group)
        return tensor.cpu().numpy()

    def before(self, counts: np.ndarray) -> np.ndarray:
        """Scan counts [C, T] of this rank's parts: what comes before each part in the fixed order, over all ranks."""
        mine = self._here(counts)
        world = torch.distributed.get_world_size(self._group)
        parts = [torch.empty_like(mine) for _ in range(world)]
        torch.distributed.all_gather(parts, mine, group=self._group)
        of_ranks = np.stack([part.cpu().numpy() for part in parts])  # [W, C, T]
        of_weights = of_ranks.sum(axis=0)
        earlier_ranks = of_ranks[: torch.distributed.get_rank(self._group)].sum(axis=0)
        return np.cumsum(of_weights, axis=1) - of_weights + earlier_ranks

    def whole(self, bits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Put the bit-packed masks of all ranks' parts together: each rank sets its own bits, and all are added."""
        return {name: self._whole(name, part) for name, part in bits.items()}

    def _whole(self, name: str, part: np.ndarray) -> np.ndarray:
        count, start = self.local[name].numel(), self.first[name]
        keep = np.unpackbits(part, count=count, bitorder="little")
        packed = np.packbits(np.concatenate([np.zeros(start % 8, np.uint8), keep]), bitorder="little")
        bits = np.zeros(-(-math.prod(self.shapes[name]) // 8), np.uint8)
        if count:
            bits[start // 8 : start // 8 + len(packed)] = packed
        tensor = self._here(bits)
        torch.distributed.all_reduce(tensor, group=self._group)  # no two ranks set one bit: a sum is a union
        return tensor.cpu().numpy()

    def _here(self, values: np.ndarray) -> Tensor:
        """Give a copy of an array on the device that the ranks' backend reads."""
        device = next(iter(self.local.values())).device
        return torch.from_numpy(values.copy()).to(device if device.type == "cuda" else "cpu")


@dataclass(frozen=True)
class _InPlace(Score):
    """A score of names and places alone, asked for places of a shard."""

    of: Score
    first: Mapping[str, int]
    reads_weights: ClassVar[bool] = False
    needs_statistics: ClassVar[bool] = False

    def bind(self, statistics: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], input_axis: int) -> Score:
        """Give itself: it is bound."""
        return self

    def form(self, weights: Mapping[str, Tensor]) -> str:
        """Give the score's own form."""
        return self.of.form(weights)

    def bits(self, name: str, flat: Tensor, start: int, stop: int, form: str) -> np.ndarray:
        """Score places start … stop of this rank's part."""
        return self.of.bits(name, flat, start + self.first[name], stop + self.first[name], form)

    def histogram(self, weights: Mapping[str, Tensor], form: str) -> np.ndarray | None:
        """Count by `bits`."""
        return None

    def value(self, code: int, form: str) -> float:
        """Give the score that a code stands for."""
        return self.of.value(code, form)

    def describe(self) -> str:
        """Name the score."""
        return self.of.describe()


class SharedCompetitors(Competitors):
    """Weights that are ranked together over all ranks: counts are the whole's, pieces and masks this rank's."""

    def __init__(self, shards: Shards, names: Sequence[str], score: Score, form: str) -> None:
        self._shards = shards
        super().__init__(shards.local, {name: shards.local[name].numel() for name in names}, score, form)

    def added(self, counts: np.ndarray) -> np.ndarray:
        """Add counts over ranks."""
        return self._shards.added(counts)

    def cuts_here(self, nums_pruned: Sequence[int]) -> list[Cut]:
        """Give the cuts with the numbers of ties, and of kept ones, among this rank's weights.

        The kept ties are the first in the fixed order, and so are this rank's share of them among its own.
        """
        cuts = self.cut(nums_pruned)
        split = [cut for cut in cuts if cut.splits_ties]
        if not split:
            return cuts
        found = self._count_ties([cut.code for cut in split])
        wanted = np.array([cut.num_kept_ties for cut in split])[:, None]
        kept = np.clip(wanted - self._shards.before(found), 0, found).sum(axis=1)
        here = zip(split, kept.tolist(), found.sum(axis=1).tolist(), strict=True)
        own = {cut: Cut(cut.code, num_kept, num_ties) for cut, num_kept, num_ties in here}
        return [own.get(cut, cut) for cut in cuts]

    def _count_ties(self, wanted: Sequence[int]) -> np.ndarray:
        """Count this rank's weights at each of these codes: int64 [C, T]."""
        place = {name: index for index, name in enumerate(self.sizes)}
        counts = np.zeros((2, len(wanted), len(place)), dtype=np.int64)  # one per thread
        read = self.reader()

        def process(piece: Piece, backward: bool) -> None:
            values = codes(read(piece, backward))
            counts[int(backward), :, place[piece[0]]] += [np.count_nonzero(values == code) for code in wanted]

        from_both_ends(self.pieces(), process)
        return counts.sum(axis=0)
