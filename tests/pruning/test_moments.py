"""Measuring is exact counting and summing, whatever the dtype, the shape in memory or the device."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from essential_sparsity.pruning.histogram import CHUNK, MagnitudeHistogram
from essential_sparsity.pruning.moments import SUMS, TRACE_BINS, measure

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def drawn(dtype: torch.dtype, n: int = 5000) -> torch.Tensor:
    weights = 0.02 * torch.randn(n, generator=torch.Generator().manual_seed(0))
    weights[:7] = torch.tensor([0.0, -0.0, 1.0, -3.0, 1e-40, 5e-8, -0.5])
    return weights.to(dtype)


def assert_measured(found, index: int, weight: torch.Tensor) -> None:
    wide = weight.double()
    counts = MagnitudeHistogram.count(weight.float()).counts
    assert found.counts[index].tolist() == counts.reshape(TRACE_BINS, 2).sum(1).tolist()
    expected = [weight.numel(), wide.sum(), wide.square().sum(), wide.pow(4).sum(), (weight == 0).sum()]
    scale = [1, float(wide.abs().sum()), float(expected[2]), float(expected[3]), 1]
    for name, value, truth, size in zip(SUMS, found.sums[index], expected, scale):
        assert value == pytest.approx(float(truth), rel=1e-6, abs=1e-6 * size), name
    assert found.largest[index] == float(wide.abs().max())
    told = found.moments(index)
    assert told["num"] == weight.numel() and isinstance(told["num_zeros"], int)


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_and_moments_are_those_of_the_weights(dtype: torch.dtype) -> None:
    weights = {"one": drawn(dtype), "turned": drawn(dtype).reshape(50, 100).t(), "long": drawn(dtype, CHUNK + 11)}
    found = measure(weights)
    assert found.names == tuple(weights)
    for index, weight in enumerate(weights.values()):
        assert_measured(found, index, weight)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_tiny_and_huge_weights_have_their_fourth_powers(scale: float) -> None:
    weight = scale * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = measure({"w": weight}).moments(0)
    assert found["sum_fourths"] == pytest.approx(float(weight.double().pow(4).sum()), rel=1e-6)
    assert measure({"w": torch.zeros(9)}).moments(0)["num_zeros"] == 9


def test_two_threads_give_the_same_sums_every_time() -> None:
    weights = {"w": drawn(torch.float32, 3 * CHUNK + 5)}
    first = measure(weights)
    assert all(np.array_equal(measure(weights).sums, first.sums) for _ in range(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="weight 'b' has 1 entries that are NaN or infinite"):
        measure({"a": torch.ones(3), "b": torch.tensor([1.0, bad])})
    with pytest.raises(ValueError, match="weight 'b' is int64"):
        measure({"b": torch.ones(3, dtype=torch.int64)})


def test_the_kernel_measures_like_the_host_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    script = textwrap.dedent("""
        import numpy as np, torch
        from essential_sparsity.pruning.moments import measure
        from essential_sparsity.pruning.moments_cuda import measure_by_kernel
        torch.manual_seed(0)
        for dtype in (torch.float32, torch.bfloat16):
            drawn = {"a": torch.randn(70, 40), "b": torch.randn(3), "c": torch.zeros(65540)}
            weights = {name: weight.to(dtype) for name, weight in drawn.items()}
            found, right = measure_by_kernel(weights)(), measure(weights)
            assert np.array_equal(found.counts, right.counts), dtype
            assert np.allclose(found.sums, right.sums, rtol=1e-5, atol=1e-4), (found.sums, right.sums)
            assert np.array_equal(found.largest, right.largest)
    """)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_card_measures_like_the_host(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card here")
    weights = {"a": drawn(dtype, 300_001), "b": drawn(dtype, 7)}
    found, right = measure({name: weight.cuda() for name, weight in weights.items()}), measure(weights)
    assert np.array_equal(found.counts, right.counts) and np.array_equal(found.largest, right.largest)
    assert np.allclose(found.sums, right.sums, rtol=1e-5, atol=1e-4)
