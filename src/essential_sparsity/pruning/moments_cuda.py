"""All weights' histograms and moments on a GPU in one launch, and one copy to the host that nothing waits for.

Each program takes a segment of one weight: it adds to one of the weight's `REPLICAS` rows of counters (which the L2
cache holds) and keeps its sums in fp64. The segments' sums are added on the host, in order. Imported only where it
runs.

Shapes: W weights, S segments, T trace bins.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from essential_sparsity.pruning.moments import SUMS, TRACE_BINS, Measurement

SEGMENT = 2**16
REPLICAS = 4
_TILE, _REPLICAS, _BINS = tl.constexpr(1024), tl.constexpr(REPLICAS), tl.constexpr(TRACE_BINS)


def measure_by_kernel(weights: Mapping[str, Tensor]) -> Callable[[], Measurement]:
    """Launch the measuring of weights of one GPU; what comes back waits for the copy and gives the measurement."""
    flats = [weight.contiguous().view(-1) for weight in weights.values()]
    device = flats[0].device
    dtypes = {flat.dtype for flat in flats}
    if len(dtypes) > 1:
        flats = [flat.float() for flat in flats]
    segments = _segments([flat.numel() for flat in flats])
    pointers = torch.tensor([flat.data_ptr() for flat in flats], dtype=torch.int64)
    table = torch.from_numpy(segments).to(device)
    counters = torch.zeros(len(flats), REPLICAS, TRACE_BINS, dtype=torch.int32, device=device)
    partial = torch.zeros(len(segments), len(SUMS), dtype=torch.float64, device=device)
    _measure_segments[(len(segments),)](
        flats[0], pointers.to(device), table, counters, partial, replicas=_REPLICAS, bins=_BINS, tile=_TILE
    )
    counts = counters.sum(dim=1, dtype=torch.int32)
    packed = torch.cat([counts.view(-1), partial.view(torch.int32).view(-1)])
    on_host = torch.empty(packed.shape, dtype=torch.int32, pin_memory=device.type == "cuda")
    on_host.copy_(packed, non_blocking=True)
    copied = torch.cuda.Event() if device.type == "cuda" else None
    if copied is not None:
        copied.record()

    def wait() -> Measurement:
        if copied is not None:
            copied.synchronize()
        return _unpacked(tuple(weights), on_host.numpy(), segments).check()

    return wait


def _segments(sizes: list[int]) -> np.ndarray:
    """Cut weights into segments: int64 [S, 3] of weight, start, stop."""
    parts = [np.arange(0, size, SEGMENT) for size in sizes]
    owners = np.repeat(np.arange(len(sizes)), [len(part) for part in parts])
    starts = np.concatenate(parts)
    return np.stack([owners, starts, np.minimum(starts + SEGMENT, np.array(sizes)[owners])], axis=1)


def _unpacked(names: tuple[str, ...], packed: np.ndarray, segments: np.ndarray) -> Measurement:
    """Read counts [W, T] and the segments' sums [S, 5] (sum, squares, fourths, zeros, largest) from one array."""
    counts, rest = np.split(packed, [len(names) * TRACE_BINS])
    partial = rest.view(np.float64).reshape(len(segments), len(SUMS))
    owners = segments[:, 0]
    sums, largest = np.zeros((len(names), len(SUMS))), np.zeros(len(names))
    np.add.at(sums[:, 0], owners, segments[:, 2] - segments[:, 1])
    np.add.at(sums[:, 1:], owners, partial[:, :-1])
    np.fmax.at(largest, owners, partial[:, -1])
    return Measurement(names, counts.reshape(len(names), TRACE_BINS).astype(np.int64), sums, largest)


@triton.jit
def _measure_segments(
    sample, pointers, table, counters, partial, replicas: tl.constexpr, bins: tl.constexpr, tile: tl.constexpr
):
    segment = tl.program_id(0)
    weight = tl.load(table + 3 * segment)
    start = tl.load(table + 3 * segment + 1)
    stop = tl.load(table + 3 * segment + 2)
    values = tl.load(pointers + weight).to(sample.dtype)  # `sample` only says what lies there
    row = counters + (weight * replicas + segment % replicas) * bins
    total = tl.zeros([tile], dtype=tl.float64)
    squares = tl.zeros([tile], dtype=tl.float64)
    fourths = tl.zeros([tile], dtype=tl.float64)
    zeros = tl.zeros([tile], dtype=tl.float64)
    largest = tl.zeros([tile], dtype=tl.float64)
    for offset in range(start, stop, tile):
        index = offset + tl.arange(0, tile)
        inside = index < stop
        value = tl.load(values + index, mask=inside, other=1.0).to(tl.float32)
        code = (value.to(tl.int32, bitcast=True) >> 17) & 0x3FFF
        tl.atomic_add(row + code, 1, mask=inside, sem="relaxed")
        wide = tl.where(inside, value.to(tl.float64), 0.0)
        total += wide
        squares += wide * wide
        fourths += wide * wide * wide * wide
        zeros += tl.where(inside & (value == 0.0), 1.0, 0.0)
        largest = tl.maximum(largest, tl.abs(wide))
    out = partial + 5 * segment
    tl.store(out, tl.sum(total))
    tl.store(out + 1, tl.sum(squares))
    tl.store(out + 2, tl.sum(fourths))
    tl.store(out + 3, tl.sum(zeros))
    tl.store(out + 4, tl.max(largest))
