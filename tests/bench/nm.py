"""N:M masks of a BERT-base: time and memory against the loop over column groups, and per-row masks against a sort."""

from collections.abc import Iterator, Mapping
from statistics import median

import torch
from torch import Tensor

from essential_sparsity.pruning import NM, Magnitude, Masks, PerRow, Pruner
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import fresh, in_turn, peak_memory, seconds
from tests.bench.pruning import FORMS, random_weights

PATTERNS = (NM(2, 4), NM(1, 2), NM(4, 8), NM(16, 32))
ROWS = Pruner(allocation=PerRow())


def ours(weights: Mapping[str, Tensor], pattern: NM = PATTERNS[0]) -> Masks:
    """Rank and cut."""
    return Pruner(Magnitude(), pattern=pattern)(weights)


def by_column_groups(weights: Mapping[str, Tensor], pattern: NM = PATTERNS[0]) -> dict[str, Tensor]:
    """Prune one group of columns after the other, as the paper's code and Wanda's do: topk and scatter."""
    masks = {}
    for name, weight in weights.items():
        magnitudes = weight.abs()
        pruned = torch.zeros_like(weight, dtype=torch.bool)
        for start in range(0, weight.shape[1], pattern.of):
            group = magnitudes[:, start : start + pattern.of].float()
            places = torch.topk(group, pattern.of - pattern.keep, dim=1, largest=False).indices
            pruned.scatter_(1, start + places, True)
        masks[name] = ~pruned
    return masks


def by_sorted_rows(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sort every row and scatter the smaller half, as Wanda's code does."""
    masks = {}
    for name, weight in weights.items():
        order = torch.sort(weight.abs(), dim=-1, stable=True).indices
        pruned = torch.zeros_like(weight, dtype=torch.bool)
        masks[name] = ~pruned.scatter_(1, order[:, : weight.shape[1] // 2], True)
    return masks


def run(quick: bool = False) -> Iterator[Figure]:
    """Time of several patterns and of rows, memory, agreement."""
    for form in ("fp32", "bf16"):
        weights = random_weights(form, quick=quick)
        limit = sum(weight.nbytes for weight in weights.values()) / machine.rates(quick).read
        reads = {"limit": limit, "limit_is": "to read the weights once"}
        for pattern in PATTERNS if form == "fp32" else PATTERNS[:1]:
            mine, theirs, _ = in_turn(
                lambda p=pattern, w=weights: seconds(lambda: ours(w, p)),
                lambda p=pattern, w=weights: seconds(lambda: by_column_groups(w, p)),
                3,
            )
            yield Figure(
                f"{form}: all {pattern.describe()} masks; loop over column groups", mine, theirs,
                goal="≥ 20" if pattern == PATTERNS[0] and form == "fp32" else "", **reads,
            )  # fmt: skip
        yield _agreement(form, weights)
        if form == "fp32":
            one = median(seconds(lambda w=weights: ROWS(w, sparsity=0.5)) for _ in range(3))
            peer = seconds(lambda w=weights: by_sorted_rows(w))
            yield Figure("fp32: half of every row; torch.sort and scatter", one, peer, **reads)
        del weights
    yield from _memory(quick=quick)


def _agreement(form: str, weights: Mapping[str, Tensor]) -> Figure:
    """Count tensors in which a pruned weight of some four is larger than a kept one: ties may go either way."""
    masks, wrong = ours(weights), 0
    for name, weight in weights.items():
        keep, groups = masks[name].view(-1, 4), weight.abs().float().view(-1, 4)
        smallest = groups.masked_fill(~keep, torch.inf).amin(dim=1)
        right = (keep.sum(dim=1) == 2).all() and (smallest >= groups.masked_fill(keep, 0).amax(dim=1)).all()
        wrong += not bool(right)
    return Figure(
        f"{form}: tensors whose 2:4 masks are not the largest two of each four", wrong, unit="", goal="= 0", check=True
    )


def _memory(*, quick: bool) -> Iterator[Figure]:
    """Peak of resident memory above weights and masks, each in a fresh process."""
    for form in ("fp32",) if quick else FORMS:
        mine, theirs = (fresh(extra_memory, form=form, who=who, quick=quick)[0] for who in WORK)
        yield Figure(
            f"{form}: peak memory beside weights and 2:4 masks; loop over column groups", mine, theirs,
            unit="share", ratio_is="of peer", goal="≤ 0.05", limit_is="of the weights' bytes",
        )  # fmt: skip


WORK = {"ours": ours, "by_column_groups": by_column_groups}


def extra_memory(form: str, who: str, quick: bool) -> float:
    """Measure in this (fresh) process the peak beside weights and masks, as a share of the weights' bytes."""
    weights, work = random_weights(form, quick=quick), WORK[who]
    work(random_weights(form, quick=True))  # loads code and starts threads
    result, peak = peak_memory(lambda: work(weights))
    if isinstance(result, Masks):
        held = sum(bits.nbytes for bits in result.bits.values())
    else:
        held = sum(mask.nbytes for mask in result.values())
    return (peak - held) / sum(weight.nbytes for weight in weights.values())
