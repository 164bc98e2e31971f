"""The magnitude histogram on a CUDA card: the Triton kernel against bincount, and a ranking against torch's own."""

from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from essential_sparsity.pruning.histogram import MagnitudeHistogram, count_by_bincount, upper_halfwords
from tests.bench import prune_large
from tests.bench.figure import Figure
from tests.bench.measure import seconds
from tests.bench.pruning import LEVELS, OMP, our_grid, ours, random_weights, torch_global


def run(quick: bool = False) -> Iterator[Figure]:
    """Measure where a card is, say so where none is."""
    if not torch.cuda.is_available():
        yield Figure("histogram and ranking on the card", skipped="no CUDA card: skipped")
        return
    from essential_sparsity.pruning.histogram_cuda import count_by_kernel

    bandwidth = _bandwidth()
    yield Figure("card memory: copy, read + written", limit=bandwidth / 1e9, unit="GB/s")
    for form in ("fp32", "bf16"):
        weights = {name: weight.cuda() for name, weight in random_weights(form, quick=quick).items()}
        num_bytes = sum(weight.nbytes for weight in weights.values())
        once = {"limit": num_bytes / bandwidth, "limit_is": "to read the weights once"}
        halves = upper_halfwords(torch.cat([weight.reshape(-1) for weight in weights.values()]))
        same = torch.equal(count_by_kernel(halves), count_by_bincount(halves))
        yield Figure(f"{form}: kernel and bincount count the same", float(same), unit="", goal="= 1", check=True)
        kernel, bincount = _timed(lambda h=halves: count_by_kernel(h)), _timed(lambda h=halves: count_by_bincount(h))
        yield Figure(f"{form}: histogram of all weights; torch.bincount", kernel, bincount, **once)
        del halves
        one, peer = _timed(lambda w=weights: ours(w)), _timed(lambda w=weights: torch_global(w))
        yield Figure(f"{form}: rank and cut at one sparsity; torch global_unstructured", one, peer, **once)
        grid = _timed(lambda w=weights: our_grid(w))
        yield Figure(f"{form}: rank once, cut at 20; 20 × torch global_unstructured", grid, len(LEVELS) * peer, **once)
        del weights
    yield from large(bandwidth, quick=quick)


def large(bandwidth: float, *, quick: bool) -> Iterator[Figure]:
    """Time the pass that finds a global threshold over 6.4 billion bf16 weights, OPT-6.7B's prunable ones."""
    layers, width, _ = prune_large.sizes(quick)
    shapes = {name: shape for name, shape in prune_large.shard_shapes(range(layers), width).items() if len(shape) == 2}
    weights = {n: torch.randn(s, device="cuda", dtype=torch.bfloat16).mul_(0.02) for n, s in shapes.items()}
    num_bytes = sum(weight.nbytes for weight in weights.values())
    once = {"limit": num_bytes / bandwidth, "limit_is": "to read the weights once", "goal": "≤ 0.03"}
    yield Figure(
        f"bf16: one pass over OPT-6.7B's {num_bytes // 2:,} weights",
        _timed(lambda: MagnitudeHistogram.count(weights)), **once,
    )  # fmt: skip
    yield Figure("bf16: rank them and find the threshold of 0.5", _timed(lambda: OMP.rank(weights).thresholds(["0.5"])))


def _timed(work: Callable[[], object]) -> float:
    """Give the median of five calls, each waited for, after one to warm up."""

    def whole() -> None:
        work()
        torch.cuda.synchronize()

    whole()
    return median(seconds(whole) for _ in range(5))


def _bandwidth() -> float:
    source = torch.ones(2**28, device="cuda")
    target: Tensor = torch.empty_like(source)
    return 2 * source.nbytes / _timed(lambda: target.copy_(source))
