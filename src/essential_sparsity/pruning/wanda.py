"""Wanda: magnitudes weighed by the norms of inputs (arXiv 2306.11695), block by block or of the dense model.

R outputs (rows), D inputs, M weights of a group.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from essential_sparsity.pruning.activations import Batch, Forward, InputNorms, checked, gather, num_rows
from essential_sparsity.pruning.allocations import PerRow
from essential_sparsity.pruning.architecture import Architecture, architecture_of, prunable_weights
from essential_sparsity.pruning.calibration import all_kept, together, walk
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.patterns import NM, Unstructured
from essential_sparsity.pruning.pruner import Pruned, Pruner
from essential_sparsity.pruning.scores import ActivationNorm
from essential_sparsity.pruning.sparsity import num_pruned

Cut = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], tuple[Masks, dict[str, Tensor]]]
"""(weights, norms of their inputs) → masks, and the same as bool tensors beside the weights."""


def prune_by_norms(
    pruner: Pruner,
    model: nn.Module,
    *,
    sparsity: object,
    architecture: Architecture | None = None,
    batches: Sequence[Batch] | None = None,
    forward: Forward | None = None,
) -> Pruned:
    """Prune by a score that needs the norms of inputs, of the dense model or block by block, as the score says.

    Block by block each tensor must lose a share that is known before the others: PerRow, Uniform or an N:M pattern.
    """
    wanted = pruner.resolve(sparsity)
    weights = prunable_weights(model, architecture)
    if wanted == 0:
        return Pruned(all_kept(weights, pruner.describe()))
    batches = checked(batches or ())
    notes = {"num_calibration_rows": num_rows(batches)}
    if isinstance(pruner.score, ActivationNorm) and pruner.score.inputs == "pruned":
        layout = architecture or architecture_of(list(weights))
        cut = _on_card(pruner, wanted, layout) if _fits_card(pruner, weights) else _by_ranking(pruner, wanted, layout)
        return Pruned(_block_by_block(model, batches, cut, architecture=architecture, forward=forward), notes=notes)
    statistics = gather(model, batches, InputNorms, architecture=architecture, forward=forward)
    return Pruned(pruner(weights, sparsity=wanted, statistics=statistics, architecture=architecture), notes=notes)


def _block_by_block(
    model: nn.Module,
    batches: Sequence[Batch],
    cut: Cut,
    *,
    architecture: Architecture | None,
    forward: Forward | None,
) -> Masks:
    found: list[Masks] = []

    def choose(block: dict[str, nn.Parameter], norms: dict[str, Tensor]) -> dict[str, Tensor]:
        masks, keeps = cut(block, norms)
        found.append(masks)
        return {name: weight.masked_fill(~keeps[name], 0) for name, weight in block.items()}

    walk(model, batches, InputNorms, choose, architecture=architecture, forward=forward)
    return together(found)


def _by_ranking(pruner: Pruner, sparsity: Fraction | None, layout: Architecture) -> Cut:
    """Cut a block by the ranking that all pruners use."""

    def cut(weights: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> tuple[Masks, dict[str, Tensor]]:
        masks = pruner(weights, sparsity=sparsity, statistics=norms, architecture=layout)
        return masks, {name: masks[name].to(weight.device) for name, weight in weights.items()}

    return cut


# --- on a card --------------------------------------------------------------------------------------------------------


def _fits_card(pruner: Pruner, weights: Mapping[str, Tensor]) -> bool:
    """Say whether all weights lie on a card, and are cut along their inputs."""
    along_inputs = isinstance(pruner.pattern, NM) and pruner.pattern.axis == "input"
    per_row = isinstance(pruner.pattern, Unstructured) and isinstance(pruner.allocation, PerRow)
    return (along_inputs or per_row) and all(weight.is_cuda for weight in weights.values())


def _on_card(pruner: Pruner, sparsity: Fraction | None, layout: Architecture) -> Cut:
    """Cut a block where its weights lie: the same masks, without a copy of the weights to the host."""
    axis, pattern = layout.input_axis, pruner.pattern

    def cut(weights: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> tuple[Masks, dict[str, Tensor]]:
        pruner.score.bind(norms, {name: tuple(weight.shape) for name, weight in weights.items()}, axis).form(weights)
        pattern.runs({name: tuple(weight.shape) for name, weight in weights.items()}, layout)  # refuses misfits
        keeps, num_ties = {}, 0
        for name, weight in weights.items():
            scores = (weight if axis == 1 else weight.T).detach().float().abs() * norms[name].float()
            if isinstance(pattern, NM):
                keep, ties = keep_of_groups(scores, pattern)
            else:
                keep, ties = keep_of_rows(scores, num_pruned(sparsity or Fraction(0), scores.shape[1]))
            keeps[name] = (keep if axis == 1 else keep.T).contiguous()
            num_ties += ties
        bits = {name: packed(keep) for name, keep in keeps.items()}
        shapes = {name: tuple(keep.shape) for name, keep in keeps.items()}
        return Masks(bits, shapes, **pruner.describe(), requested=sparsity, num_ties=num_ties), keeps

    return cut


def keep_of_rows(scores: Tensor, num_pruned: int) -> tuple[Tensor, int]:
    """Keep mask of all but the smallest scores of each row [R, D], ties keep the earlier; and how many tie at a cut."""
    if num_pruned == 0:
        return torch.ones_like(scores, dtype=torch.bool), 0
    threshold = scores.kthvalue(num_pruned, dim=1, keepdim=True).values
    keep = scores > threshold
    spared = scores.shape[1] - num_pruned - keep.sum(dim=1, keepdim=True)
    split = (spared > 0).squeeze(1)
    if not bool(split.any()):
        return keep, 0
    tied = scores[split] == threshold[split]
    keep[split] |= tied & (tied.cumsum(dim=1) <= spared[split])
    return keep, int(tied.sum())


def keep_of_groups(scores: Tensor, pattern: NM) -> tuple[Tensor, int]:
    """Keep mask of the largest scores of each group along rows [R, D], ties keep the earlier; and how many tie."""
    rows, columns = scores.shape
    full = columns - columns % pattern.of
    keep = torch.ones_like(scores, dtype=torch.bool)
    num_ties = 0
    for part, of in ((slice(0, full), pattern.of), (slice(full, columns), columns - full)):
        if (
            of == 0
            or part.start == part.stop
            or pattern.keep >= of
            or (of < pattern.of and pattern.remainder == "skip")
        ):
            continue
        groups = scores[:, part].reshape(rows, -1, of)
        ordered, order = groups.sort(dim=2, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[..., : pattern.keep], True)
        keep[:, part] = kept.view(rows, -1)
        last = ordered[..., pattern.keep - 1, None]
        split = last == ordered[..., pattern.keep, None]
        num_ties += int(((groups == last) & split).sum())
    return keep, num_ties


def packed(keep: Tensor) -> np.ndarray:
    """Pack a mask where it lies, as Masks holds it: uint8 [ceil(n / 8)] on the host."""
    flat = keep.reshape(-1).to(torch.uint8)
    eights = nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=keep.device)).sum(1, dtype=torch.uint8).cpu().numpy()
