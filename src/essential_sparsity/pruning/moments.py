"""Magnitudes of every weight in one pass: a histogram of 14 bits and the moments, on the host or on a GPU.

A *trace bin* is the upper 14 bits of a magnitude's fp32 code (8 of exponent, 6 of fraction): two bins of histogram.py.
Counts are exact at bin edges, which lie at most 1.6 % apart. fp16 weights are counted in fp32: all traces add up.

Shapes: W weights, P pieces, T trace bins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor

from essential_sparsity.pruning.histogram import (
    Flats,
    Piece,
    common_form,
    count_bins,
    from_both_ends,
    magnitude_bits,
    pieces,
)
from essential_sparsity.pruning.shards import own_part

TRACE_BINS = 2**14
FIRST_NON_FINITE = 0x7F80 >> 1

SUMS = ("num", "sum", "sum_squares", "sum_fourths", "num_zeros")
"""What adds up over pieces, shards and ranks; `largest` is the maximum instead."""

SAFE = (1e-6, 1e8)
"""Largest magnitudes between which fourth powers neither vanish nor overflow in fp32."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """Magnitudes of weights at one moment: `counts` int64 [W, T], `sums` float64 [W, 5] (SUMS), `largest` [W]."""

    names: tuple[str, ...]
    counts: np.ndarray
    sums: np.ndarray
    largest: np.ndarray

    def check(self) -> "Measurement":
        """Give itself; raises ValueError naming a weight with NaN or infinite entries."""
        for name, bad in zip(self.names, self.counts[:, FIRST_NON_FINITE:].sum(axis=1), strict=True):
            if bad:
                raise ValueError(f"weight {name!r} has {bad} entries that are NaN or infinite: training diverged")
        return self

    def moments(self, index: int) -> dict[str, float | int]:
        """Give one weight's moments: num, sum, sum_squares, sum_fourths, num_zeros, largest."""
        told: dict[str, float | int] = dict(zip(SUMS, self.sums[index].tolist(), strict=True))
        return told | {key: round(told[key]) for key in ("num", "num_zeros")} | {"largest": float(self.largest[index])}


def measure(weights: Mapping[str, Tensor]) -> Measurement:
    """Count and sum every weight in one pass over memory; a sharded weight (DTensor) is counted once over all ranks.

    Where weights are sharded, all ranks must call this. Raises ValueError for a weight that is not finite, of another
    dtype than fp32, bf16 and fp16, or without data.
    """
    return measure_later(weights)()


def measure_later(weights: Mapping[str, Tensor]) -> Callable[[], Measurement]:
    """Start measuring; what comes back waits for the result. On the host all is done at once, on a GPU nothing waits.

    The weights may change as soon as this returns: later work on the GPU queues behind the measuring.
    """
    local = {name: own_part(weight.detach()) for name, weight in weights.items()}
    form = common_form(local)
    form = "float32" if form == "float16" else form
    if any(isinstance(weight, DTensor) for weight in weights.values()):
        merged = _added_over_ranks(_at_once(local, form), next(iter(local.values())).device)
        return merged.check
    if local and all(weight.is_cuda for weight in local.values()):
        try:
            from essential_sparsity.pruning.moments_cuda import measure_by_kernel
        except ImportError:
            return _at_once(local, form).check
        return measure_by_kernel(local)
    return _at_once(local, form).check


def _at_once(weights: Mapping[str, Tensor], form: str) -> Measurement:
    """Measure in pieces of 2^18 weights, two threads; the sums are added in the order of the pieces."""
    names = list(weights)
    place = {name: index for index, name in enumerate(names)}
    todo = pieces({name: weight.numel() for name, weight in weights.items()})
    row = {piece: index for index, piece in enumerate(todo)}
    counts = np.zeros((2, len(names), 2 * TRACE_BINS), dtype=np.int64)  # one per thread
    partial = np.zeros((len(todo), len(SUMS) + 1))
    flats = Flats(weights)

    def process(piece: Piece, backward: bool) -> None:
        name, start, stop = piece
        flat = flats.get(name, backward)
        found = count_bins(magnitude_bits(flat, start, stop, form))
        counts[int(backward), place[name]] += found
        partial[row[piece]] = _piece_moments(flat[start:stop].float(), has_tiny=bool(found[:2].any()))

    from_both_ends(todo, process)
    return _summed(names, counts.sum(axis=0).reshape(len(names), TRACE_BINS, 2).sum(axis=2), partial, [
        place[name] for name, _, _ in todo
    ])  # fmt: skip


def _piece_moments(values: Tensor, *, has_tiny: bool) -> tuple[float, ...]:
    """Give the sums of one piece and its largest magnitude; zeros are looked for only where the lowest bin has any."""
    low, high = torch.aminmax(values)
    largest = max(-float(low), float(high))
    if not SAFE[0] < largest < SAFE[1]:
        values = values.double()
    squares = values * values
    zeros = values.numel() - int(torch.count_nonzero(values)) if has_tiny else 0
    return (values.numel(), float(values.sum()), float(squares.sum()), float((squares * squares).sum()), zeros, largest)


def _summed(names: list[str], counts: np.ndarray, partial: np.ndarray, owners: list[int]) -> Measurement:
    """Add the pieces' sums [P, 6] to their weights, in order: the same result whichever thread was faster."""
    sums, largest = np.zeros((len(names), len(SUMS))), np.zeros(len(names))
    np.add.at(sums, owners, partial[:, :-1])
    np.fmax.at(largest, owners, partial[:, -1])
    return Measurement(tuple(names), counts, sums, largest)


# --- sharded weights --------------------------------------------------------------------------------------------------


def _added_over_ranks(own: Measurement, device: torch.device) -> Measurement:
    """Add what all ranks counted, by three all-reduces: shards add up to the whole weight."""
    backend_device = device if device.type == "cuda" else torch.device("cpu")
    counts, sums, largest = (torch.from_numpy(a).to(backend_device) for a in (own.counts, own.sums, own.largest))
    torch.distributed.all_reduce(counts)
    torch.distributed.all_reduce(sums)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return Measurement(own.names, counts.cpu().numpy(), sums.cpu().numpy(), largest.cpu().numpy())
