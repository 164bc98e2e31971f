"""SparseGPT: chooses masks and corrects the weights that survive (Frantar and Alistarh, arXiv 2301.00774).

D inputs (columns), R outputs (rows) of a matrix, b columns of a block. Weights are held as [D, R], inputs first: what
the paper calls a column is then contiguous. U is upper triangular with UᵀU = H⁻¹; row i of U tells how an error in
column i is made up for by the columns after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor, nn

from essential_sparsity.pruning.activations import Batch, Forward, Hessians, checked, num_rows
from essential_sparsity.pruning.allocations import exact_sparsity, num_pruned
from essential_sparsity.pruning.architecture import Architecture, architecture_of, prunable_weights
from essential_sparsity.pruning.calibration import all_kept, together, walk
from essential_sparsity.pruning.masks import Masks
from essential_sparsity.pruning.patterns import NM, Pattern, Unstructured
from essential_sparsity.pruning.pruner import Calibration, Pruned
from essential_sparsity.pruning.ranking import CALIBRATE

STEP = 16
"""Columns that are corrected before the rest of their block is brought up to date by one matrix product."""


@dataclass(frozen=True)
class SparseGPT:
    """Prune block by block of the model, and in each matrix by blocks of columns, correcting what is left.

    The share of zeros is exact in every `block_size` columns of a matrix (Unstructured), or in every group (NM).
    `dampening` is the share of the mean diagonal that is added to the Hessian, ten times more wherever it is not
    positive definite even so; `notes["num_damped"]` counts those weights.
    """

    pattern: Pattern = field(default_factory=Unstructured)
    calibration: Calibration | None = None
    dampening: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        """Read the pattern and check the settings."""
        object.__setattr__(self, "pattern", Pattern.read(self.pattern))
        if not 0 < self.dampening < 1:
            raise ValueError(f"pruner.dampening={self.dampening} lies outside (0, 1): give a share, as 0.01")
        if not isinstance(self.block_size, int) or self.block_size < 1:
            raise ValueError(f"pruner.block_size={self.block_size!r} is no number of columns: give one, as 128")
        if isinstance(self.pattern, NM) and self.pattern.axis != "input":
            raise ValueError(
                f"pruner.pattern.axis={self.pattern.axis} runs over outputs, SparseGPT corrects along inputs: "
                "give pruner.pattern.axis=input"
            )

    def resolve(self, sparsity: object) -> Fraction | None:
        """Give the exact sparsity that is meant, or raise ValueError where it is none or contradicts the pattern."""
        return self.pattern.resolve(exact_sparsity(sparsity))

    def describe(self) -> dict[str, str]:
        """Name score, allocation and pattern."""
        return {
            "score": f"sparsegpt(dampening={self.dampening:g})",
            "allocation": f"per {self.block_size} columns",
            "pattern": self.pattern.describe(),
        }

    def prune(
        self,
        model: nn.Module,
        *,
        sparsity: object = None,
        architecture: Architecture | None = None,
        batches: Sequence[Batch] | None = None,
        forward: Forward | None = None,
    ) -> Pruned:
        """Choose masks and corrected weights of a model (or of a module that wraps it), without changing it."""
        wanted = self.resolve(sparsity)
        weights = prunable_weights(model, architecture)
        if wanted == 0:
            return Pruned(all_kept(weights, self.describe()))
        if batches is None:
            raise ValueError(f"pruner sparsegpt has no calibration rows: {CALIBRATE}")
        batches = checked(batches)
        layout = architecture or architecture_of(list(weights))
        self.pattern.runs({name: tuple(weight.shape) for name, weight in weights.items()}, layout)  # refuses misfits
        parts: list[Masks] = []
        corrected: dict[str, Tensor] = {}
        damped: list[str] = []

        def choose(block: dict[str, nn.Parameter], hessians: dict[str, Tensor]) -> Mapping[str, Tensor]:
            keeps = {}
            for names in _sharing(hessians):
                factor = InverseFactor.of(hessians[names[0]], self.dampening, names[0])
                damped.extend(names if factor.escalated else ())
                inputs_first = [_turned(block[name].float(), layout.input_axis) for name in names]
                found = compress(
                    inputs_first, factor, sparsity=wanted, pattern=self.pattern, block_size=self.block_size
                )
                for name, (values, keep) in zip(names, found, strict=True):
                    keeps[name] = _turned(keep, layout.input_axis)
                    corrected[name] = _in_format(name, _turned(values, layout.input_axis), block[name].dtype)
            parts.append(Masks.from_tensors(keeps, **self.describe(), requested=wanted))
            return {name: corrected[name] for name in block}

        walk(model, batches, Hessians, choose, architecture=architecture, forward=forward)
        notes = {"num_damped": len(damped), "num_calibration_rows": num_rows(batches)}
        return Pruned(together(parts), {name: corrected[name] for name in weights}, notes)


def _sharing(statistics: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Group weights by the statistic that they share."""
    groups: dict[int, list[str]] = {}
    for name, value in statistics.items():
        groups.setdefault(id(value), []).append(name)
    return [tuple(names) for names in groups.values()]


def _turned(matrix: Tensor, input_axis: int) -> Tensor:
    """Turn a matrix as it is stored to inputs first, or back."""
    return (matrix.T if input_axis == 1 else matrix).contiguous()


def _in_format(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round corrected weights to the model's number format; raises ValueError where they do not fit."""
    rounded = values.to(dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise ValueError(f"weight {name!r} does not fit into {dtype} after its correction: raise pruner.dampening")
    return rounded


# --- the inverse Hessian ----------------------------------------------------------------------------------------------

_MOST_ESCALATIONS = 12


@dataclass(frozen=True, eq=False)
class InverseFactor:
    """U [D, D], upper triangular, with UᵀU = (H + λ·mean(diag H)·1)⁻¹.

    `dead` marks the inputs that are always zero [D], `escalated` says that λ had to grow.
    """

    upper: Tensor
    dead: Tensor
    escalated: bool

    @classmethod
    def of(cls, hessian: Tensor, dampening: float, name: str = "weight") -> "InverseFactor":
        """Factorise by one Cholesky decomposition: with J the reversal, JHJ = LLᵀ gives U = JL⁻¹J.

        An input that is always zero has no say: the mean of the others stands on its diagonal (its scale is theirs).
        """
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        mean = float(diagonal[~dead].mean()) if not bool(dead.all()) else 1.0
        turned = hessian.flip(0, 1)
        on_diagonal = turned.diagonal()
        on_diagonal.masked_fill_(dead.flip(0), mean)
        added = 0.0
        for escalations in range(_MOST_ESCALATIONS):
            wanted = dampening * 10**escalations * mean
            on_diagonal += wanted - added
            added = wanted
            lower, failed = torch.linalg.cholesky_ex(turned)
            if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
                return cls(inverse_of_lower(lower).flip(0, 1), dead, escalations > 0)
        raise ValueError(f"weight {name!r} has a Hessian that no dampening makes positive definite: look at its inputs")


SOLVED = 256
"""Edge up to which a triangular matrix is inverted by solving; larger ones are halved."""


def inverse_of_lower(lower: Tensor) -> Tensor:
    """Invert a lower triangular matrix by halves: (A 0; C B)⁻¹ = (A⁻¹ 0; −B⁻¹CA⁻¹ B⁻¹).

    Two thirds of the work of solving for the identity, and all of it large matrix products.
    """
    n = len(lower)
    if n <= SOLVED:
        one = torch.eye(n, device=lower.device, dtype=lower.dtype)
        return torch.linalg.solve_triangular(lower, one, upper=False)
    half = n // 2
    inverse = torch.zeros_like(lower)
    first, last = inverse_of_lower(lower[:half, :half]), inverse_of_lower(lower[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    torch.mm(last, lower[half:, :half] @ first, out=inverse[half:, :half]).neg_()
    return inverse


# --- one matrix, or several that read the same inputs -----------------------------------------------------------------


def compress(
    parts: Sequence[Tensor], factor: InverseFactor, *, sparsity: Fraction | None, pattern: Pattern, block_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Prune and correct matrices [D, R] that read the same inputs: (fp32 weights with zeros in place, keep mask) each.

    Algorithm 1 of the paper. Under Unstructured the mask of a block of columns is chosen when the block is reached,
    under NM that of a group when the group is.
    """
    weights = torch.cat(list(parts), dim=1)
    widths = [part.shape[1] for part in parts]
    keep = torch.ones_like(weights, dtype=torch.bool)
    group = pattern if isinstance(pattern, NM) else None
    size, step = (block_size, STEP) if group is None else (max(block_size // group.of, 1) * group.of, group.of)
    for start in range(0, len(weights), size):
        stop = min(start + size, len(weights))
        block, kept, upper = weights[start:stop], keep[start:stop], factor.upper[start:stop, start:stop]
        scale = upper.diagonal()[:, None]
        errors = torch.empty_like(block)
        if group is None:
            scores = (block.abs() / scale).masked_fill_(factor.dead[start:stop, None], 0)
            for chosen, of_part in zip(kept.split(widths, dim=1), scores.split(widths, dim=1)):
                keep_largest_(chosen, of_part, num_pruned(sparsity or Fraction(0), of_part.numel()))
        for first in range(0, stop - start, step):
            here = slice(first, first + step)
            if group is not None:
                scores = (block[here].abs() / scale[here]).masked_fill_(factor.dead[start:stop][here, None], 0)
                kept[here] = best_of_group(scores, group)
            errors[here] = errors_of(block[here], kept[here], upper[here, here])
            block[first:].addmm_(upper[here, first:].T, errors[here], alpha=-1)
        block.masked_fill_(~kept, 0)
        weights[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    return list(zip(weights.split(widths, dim=1), keep.split(widths, dim=1), strict=True))


def errors_of(columns: Tensor, keep: Tensor, upper: Tensor) -> Tensor:
    """Give what pruning some entries of columns [b, R] leaves to be made up for, in units of `upper`'s rows: [b, R].

    Column j's error is its value when its turn comes over U_jj: e_j = (w_j − Σ_{i<j} e_i U_ij) / U_jj, or 0 where kept.
    """
    return (_errors_at_once if columns.is_cuda else _errors_in_turn)(columns, keep, upper)


def _errors_in_turn(columns: Tensor, keep: Tensor, upper: Tensor) -> Tensor:
    """Go column by column, as the definition says."""
    errors = torch.empty_like(columns)
    for j in range(len(columns)):
        made_up = columns[j] if j == 0 else torch.addmv(columns[j], errors[:j].T, upper[:j, j], alpha=-1)
        torch.div(made_up, upper[j, j], out=errors[j]).masked_fill_(keep[j], 0)
    return errors


def _errors_at_once(columns: Tensor, keep: Tensor, upper: Tensor) -> Tensor:
    """Solve one small triangular system per output: few launches, which is what counts on a card."""
    diagonal, pruned = upper.diagonal(), (~keep).to(columns.dtype).T  # pruned: [R, b]
    systems = pruned[:, :, None] * upper.triu(1).T + torch.diag(diagonal)
    return torch.linalg.solve_triangular(systems, (columns.T * pruned)[:, :, None], upper=False)[:, :, 0].T


def keep_largest_(keep: Tensor, scores: Tensor, num_pruned: int) -> None:
    """Clear the `num_pruned` smallest scores in a mask that is all true; among equal ones the earlier output stays."""
    if num_pruned == 0:
        return
    threshold = kth_smallest(scores, num_pruned)
    torch.gt(scores, threshold, out=keep)
    num_spared = int(torch.count_nonzero(~keep)) - num_pruned
    if num_spared:
        output, column = (scores == threshold).T.nonzero()[:num_spared].unbind(1)
        keep[column, output] = True


def kth_smallest(scores: Tensor, k: int) -> Tensor:
    """Give the k-th smallest of scores that are not negative, counted from 1.

    On a card torch selects in one list with a single block of threads: the bin of the upper halfword is found by
    counting, as in histogram.py, and only that bin is sorted.
    """
    return _kth_by_bins(scores, k) if scores.is_cuda else scores.flatten().kthvalue(k).values


def _kth_by_bins(scores: Tensor, k: int) -> Tensor:
    codes = scores.flatten().view(torch.int32)
    bins = codes >> 16
    running = torch.bincount(bins, minlength=2**15).cumsum(0)
    found = torch.searchsorted(running, k)
    before = torch.where(found > 0, running[found - 1], 0)
    return codes[bins == found].sort().values[k - 1 - before].view(torch.float32)


def best_of_group(scores: Tensor, pattern: NM) -> Tensor:
    """Keep mask of the largest scores of a group of columns [b, R]; ties keep the earlier column."""
    if len(scores) < pattern.of and pattern.remainder == "skip":
        return torch.ones_like(scores, dtype=torch.bool)
    place = torch.arange(len(scores), device=scores.device)
    earlier = place[:, None, None] < place[None, :, None]
    one, other = scores[:, None], scores[None]
    ahead = (one > other) | ((one == other) & earlier)
    return ahead.sum(dim=0) < pattern.keep
