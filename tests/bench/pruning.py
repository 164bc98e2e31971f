"""Ranking and masks on BERT-base shapes: 85 M random weights, against torch's global pruning and numpy's partition.

Peers: `torch.nn.utils.prune.global_unstructured` with L1Unstructured on a module whose parameters share the weights'
memory; `numpy.partition` of the concatenated magnitudes at 20 places, then 20 comparisons with the thresholds found.
The machine's limit is the time to read the weights twice: no mask can be written before the last weight is seen.
"""

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from statistics import mean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from essential_sparsity.pruning import Global, Magnitude, Masks, Pruner, Unstructured
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import fresh, peak_memory, seconds

OMP = Pruner(Magnitude(), Global(), Unstructured())
LEVELS = ("0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4", "0.45", "0.5",
          "0.55", "0.6", "0.65", "0.7", "0.75", "0.8", "0.85", "0.9", "0.95", "0.98")  # fmt: skip
TIMED = ("0.25", "0.5", "0.75")
"""Where the peer is timed; a grid of 20 is 20 times their mean."""

FORMS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def bert_shapes(num_layers: int, width: int) -> dict[str, tuple[int, int]]:
    """Name the prunable matrices of a BERT; 12 layers of width 768 are BERT-base's 84,934,656 weights."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(num_layers):
        block = f"encoder.layer.{layer}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{block}.{part}.weight"] = (width, width)
        shapes[f"{block}.intermediate.dense.weight"] = (4 * width, width)
        shapes[f"{block}.output.dense.weight"] = (width, 4 * width)
    return shapes


def random_weights(form: str, *, quick: bool) -> dict[str, Tensor]:
    """Draw normal weights of deviation 0.02; in bf16 and fp16 they are full of ties."""
    generator = torch.Generator().manual_seed(0)
    shapes = bert_shapes(2, 64) if quick else bert_shapes(12, 768)
    return {n: torch.randn(s, generator=generator).mul_(0.02).to(FORMS[form]) for n, s in shapes.items()}


def num_pruned(sparsity: str, n: int) -> int:
    """Count what must go, from the definition: floor(s n + 1/2)."""
    return math.floor(Fraction(sparsity) * n + Fraction(1, 2))


# --- ours and the peers -----------------------------------------------------------------------------------------------


def ours(weights: Mapping[str, Tensor], sparsity: str = "0.5") -> Masks:
    """Rank and cut once."""
    return OMP(weights, sparsity=sparsity)


def our_grid(weights: Mapping[str, Tensor]) -> list[Masks]:
    """Rank once, cut at all levels."""
    return OMP.rank(weights).masks_at(LEVELS)


def torch_global(weights: Mapping[str, Tensor], sparsity: str = "0.5") -> dict[str, Tensor]:
    """Prune by torch's own global pruning; gives its masks."""
    modules = {name: nn.Linear(1, 1, bias=False) for name in weights}
    for name, weight in weights.items():
        modules[name].weight = nn.Parameter(weight)
    amount = num_pruned(sparsity, sum(weight.numel() for weight in weights.values()))
    pairs = [(module, "weight") for module in modules.values()]
    prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
    return {name: module.get_buffer("weight_mask") for name, module in modules.items()}


def numpy_partition(weights: Mapping[str, Tensor]) -> list[np.ndarray]:
    """Partition the concatenated magnitudes at 20 places; gives 20 bool masks of the whole model (ties unresolved)."""
    magnitudes = np.concatenate([np.abs(weight.numpy().reshape(-1)) for weight in weights.values()])
    places = [num_pruned(level, len(magnitudes)) for level in LEVELS]
    thresholds = np.partition(magnitudes, places)[places]
    return [magnitudes >= threshold for threshold in thresholds]


# --- figures ----------------------------------------------------------------------------------------------------------


def run(quick: bool = False) -> Iterator[Figure]:
    """Time, memory, exactness."""
    for form in FORMS:
        weights = random_weights(form, quick=quick)
        yield from times(form, weights, quick=quick)
        yield from exactness(form, weights)
        del weights
    yield from memory(quick=quick)


def times(form: str, weights: dict[str, Tensor], *, quick: bool) -> Iterator[Figure]:
    """Time one sparsity and a grid of 20, in turn with the peers."""
    timed = TIMED if form == "fp32" else TIMED[1:2]
    limit = 2 * sum(weight.nbytes for weight in weights.values()) / machine.rates(quick).read
    reads = {"limit": limit, "limit_is": "to read the weights twice"}
    ours(weights)  # starts threads, fills the allocator
    one, peer = [], []
    for level in timed:
        one += [seconds(lambda level=level: ours(weights, level)) for _ in range(3)]
        peer.append(seconds(lambda level=level: torch_global(weights, level)))
    note = f"peer timed once at each of {', '.join(timed)}"
    yield Figure(
        f"{form}: rank and cut at one sparsity; torch global_unstructured", median(one), mean(peer),
        goal="≥ 50" if form == "fp32" else "", note=note, **reads,
    )  # fmt: skip
    grid = median(seconds(lambda: our_grid(weights)) for _ in range(3))
    yield Figure(
        f"{form}: rank once, cut at 20; 20 × torch global_unstructured", grid, len(LEVELS) * mean(peer),
        goal="≥ 500" if form == "fp32" else "", note=f"{note}, their mean × 20", **reads,
    )  # fmt: skip
    if form == "fp32":
        partition = seconds(lambda: numpy_partition(weights))
        again = median(seconds(lambda: our_grid(weights)) for _ in range(3))
        what = f"{form}: rank once, cut at 20; numpy.partition and 20 comparisons"
        yield Figure(what, median([grid, again]), partition, goal="≥ 3", **reads)


def exactness(form: str, weights: dict[str, Tensor]) -> Iterator[Figure]:
    """Check at full size what the tests check at small: counts, nesting, and the very weights."""
    n = sum(weight.numel() for weight in weights.values())
    ranking = OMP.rank(weights)
    masks = ranking.masks_at(LEVELS)
    exact = sum(_zeros(mask) == num_pruned(level, n) for level, mask in zip(LEVELS, masks, strict=True))
    ties = f"{max(mask.num_ties for mask in masks):,} weights tie at a cut at most"
    yield Figure(
        f"{form}: levels of 20 with num_pruned exact ({n:,} weights)",
        exact, unit="", goal="= 20", check=True, limit_is=ties,
    )  # fmt: skip
    nested = sum(more.is_nested_in(fewer) for fewer, more in pairwise(masks))
    yield Figure(f"{form}: neighbours of 20 masks nested", nested, unit="", goal="= 19", check=True)
    wrong = sum(_out_of_order(weights, masks[LEVELS.index(level)]) for level in TIMED)
    yield Figure(f"{form}: tensors with a pruned weight above the threshold", wrong, unit="", goal="= 0", check=True)
    if form == "fp32":
        differing = ties_differing = 0
        for level in TIMED:
            others, distinct = _differing(weights, masks[LEVELS.index(level)], torch_global(weights, level))
            differing, ties_differing = differing + distinct, ties_differing + others - distinct
        yield Figure(
            "fp32: entries that differ from global_unstructured, magnitudes differing", differing,
            unit="", goal="= 0", check=True, limit_is=f"{ties_differing} more differ among equal magnitudes",
        )  # fmt: skip


def _zeros(masks: Masks) -> int:
    return sum(int((~masks[name]).sum()) for name in masks)


def _out_of_order(weights: Mapping[str, Tensor], masks: Masks) -> int:
    """Count tensors in which a pruned weight is larger than the smallest kept one of the whole model."""
    kept = min(float(weights[n].abs().masked_fill(~masks[n], math.inf).min()) for n in masks)
    return sum(float(weights[n].abs().masked_fill(masks[n], 0).max()) > kept for n in masks)


def _differing(weights: Mapping[str, Tensor], masks: Masks, peer: Mapping[str, Tensor]) -> tuple[int, int]:
    """Count entries in which masks differ: (in all, where the magnitude is not the threshold's)."""
    threshold = min(float(weights[n].abs().masked_fill(~masks[n], math.inf).min()) for n in masks)
    found = [weights[n].abs()[masks[n] != peer[n].bool()] for n in masks]
    return sum(len(some) for some in found), sum(int((some != threshold).sum()) for some in found)


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(*, quick: bool) -> Iterator[Figure]:
    """Peak of resident memory above weights and masks, each in a fresh process."""
    for form in ("fp32",) if quick else FORMS:
        measured = {who: fresh(extra_memory, form=form, who=who, quick=quick)[0] for who in WORK}
        share = {who: found["extra"] / found["weights"] for who, found in measured.items()}
        masks = measured["our_grid"]["masks"] / measured["our_grid"]["weights"]
        what, of = f"{form}: peak memory beside weights and masks", "of the weights' bytes"
        yield Figure(
            f"{what}, one sparsity; torch", share["ours"], share["torch_global"],
            unit="share", ratio_is="of peer", goal="≤ 0.05", limit_is=of,
        )  # fmt: skip
        note = f"{of}; the 20 masks are {100 * masks:.0f} %"
        yield Figure(f"{what}, grid of 20", share["our_grid"], unit="share", goal="≤ 0.05", limit_is=note)


WORK = {"ours": ours, "our_grid": our_grid, "torch_global": torch_global}


def extra_memory(form: str, who: str, quick: bool) -> dict[str, int]:
    """Measure in this (fresh) process: bytes of the weights, of the masks, and of the peak beside both."""
    weights, work = random_weights(form, quick=quick), WORK[who]
    work(random_weights(form, quick=True))  # loads code and starts threads
    result, peak = peak_memory(lambda: work(weights))
    held = _bytes(result)
    return {"weights": sum(weight.nbytes for weight in weights.values()), "masks": held, "extra": peak - held}


def _bytes(masks: Any) -> int:
    if isinstance(masks, Masks):
        return sum(bits.nbytes for bits in masks.bits.values())
    held = masks.values() if isinstance(masks, Mapping) else masks
    return sum(mask.nbytes if isinstance(mask, Tensor) else _bytes(mask) for mask in held)
