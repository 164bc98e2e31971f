"""Exact magnitude histograms against counting by hand."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from essential_sparsity.pruning import MagnitudeHistogram
from essential_sparsity.pruning.histogram import BINS, count_by_bincount, from_both_ends, pieces, upper_halfwords

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _weights(dtype: torch.dtype, n: int = 4000) -> Tensor:
    """Weights of many magnitudes, with both zeros, subnormals and repeated values."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(n, generator=generator) * 10 ** torch.empty(n).uniform_(-6, 3, generator=generator)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 5e-8, 0.5, 0.5])
    return torch.cat([wide, special]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_equal_those_of_a_loop(dtype: torch.dtype) -> None:
    weights = _weights(dtype)
    histogram = MagnitudeHistogram.count(weights)
    half = dtype if dtype == torch.float16 else torch.bfloat16
    expected = [0] * BINS
    for value in weights:
        bits = int(value.abs().view(torch.int32 if dtype == torch.float32 else torch.int16))
        expected[bits >> 16 if dtype == torch.float32 else bits] += 1
    assert histogram.counts.tolist() == expected
    assert histogram.total == len(weights)
    assert histogram.kind == str(half).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES)
def test_counts_below_bin_edges_are_exact_and_others_bounded(dtype: torch.dtype) -> None:
    weights = _weights(dtype)
    histogram = MagnitudeHistogram.count(weights)
    magnitudes = weights.double().abs()
    for index in [0, 1, 100, 8000, 14000, 16000, 17000]:
        edge = histogram.edge(index)
        below = int((magnitudes < edge).sum())
        assert histogram.count_below(edge) == (below, below)
    for magnitude in [1e-7, 0.0123, 0.3, 1.7, 1e4]:
        least, most = histogram.count_below(magnitude)
        assert least <= int((magnitudes < magnitude).sum()) <= most


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_threshold_is_the_exact_order_statistic_of_two_byte_weights(dtype: torch.dtype) -> None:
    weights = _weights(dtype)
    histogram = MagnitudeHistogram.count(weights)
    ordered = weights.double().abs().sort().values
    for rank in [0, 1, 5, 777, 2000, 4000, len(weights) - 1]:
        assert histogram.threshold(rank) == float(ordered[rank])


def test_threshold_of_fp32_is_its_bins_edge() -> None:
    histogram = MagnitudeHistogram.count(torch.tensor([0.1, 0.2, 0.3, -0.4]))
    assert histogram.threshold(2) <= 0.3 < histogram.threshold(2) * (1 + 1 / 64)
    with pytest.raises(ValueError, match=r"rank=4 lies outside \[0, 4\)"):
        histogram.threshold(4)
    with pytest.raises(ValueError, match="magnitude=-1 lies outside"):
        histogram.count_below(-1)


def test_histograms_of_parts_add_up_to_that_of_the_whole() -> None:
    weights = _weights(torch.float32)
    whole = MagnitudeHistogram.count(weights)
    parts = MagnitudeHistogram.count(weights[:1000]) + MagnitudeHistogram.count({"a": weights[1000:].view(-1, 1)})
    assert np.array_equal(whole.counts, parts.counts)


def test_fp32_and_bf16_share_bins_and_fp16_does_not() -> None:
    bf16 = _weights(torch.bfloat16)
    assert np.array_equal(MagnitudeHistogram.count(bf16).counts, MagnitudeHistogram.count(bf16.float()).counts)
    with pytest.raises(ValueError, match="histograms of float16 and bfloat16 bins do not add"):
        _ = MagnitudeHistogram.count(_weights(torch.float16)) + MagnitudeHistogram.count(bf16)


def test_a_mixed_model_is_counted_in_fp32() -> None:
    half = torch.tensor([0.1, 65000.0]).half()
    mixed = MagnitudeHistogram.count({"a": half, "b": torch.tensor([0.25])})
    alone = MagnitudeHistogram.count(torch.cat([half.float(), torch.tensor([0.25])]))
    assert np.array_equal(mixed.counts, alone.counts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_weights_are_refused_by_name(dtype: torch.dtype, bad: float) -> None:
    weights = {"fine": torch.ones(5, dtype=dtype), "blocks.3.mlp.fc1.weight": torch.ones(3, 3, dtype=dtype)}
    weights["blocks.3.mlp.fc1.weight"][1, 1] = bad
    with pytest.raises(ValueError, match=r"'blocks.3.mlp.fc1.weight' has 1 entries that are NaN or infinite"):
        MagnitudeHistogram.count(weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.int64, torch.int8, torch.bool])
def test_other_dtypes_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=f"weight 'w' is {str(dtype).removeprefix('torch.')}"):
        MagnitudeHistogram.count({"w": torch.zeros(3).to(dtype)})


def test_weights_without_values_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="weight 'w' is on the meta device"):
        MagnitudeHistogram.count({"w": torch.empty(3, device="meta")})


def test_pieces_cover_all_weights_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("essential_sparsity.pruning.histogram.CHUNK", 8)
    assert pieces({"a": 20, "none": 0, "b": 8}, 2) == [("a", 0, 16), ("a", 16, 20), ("b", 0, 8)]
    assert pieces({"a": 10, "none": 0, "b": 8}) == [("a", 0, 8), ("a", 8, 10), ("b", 0, 8)]


def test_both_threads_see_their_pieces_in_order_and_errors_come_through() -> None:
    todo = [(str(number), 0, 1) for number in range(500)]
    seen: dict[bool, list[int]] = {False: [], True: []}
    from_both_ends(todo, lambda piece, backward: seen[backward].append(int(piece[0])))
    assert seen[False] + seen[True][::-1] == list(range(500))

    def fail(piece: tuple[str, int, int], backward: bool) -> None:
        raise KeyError(piece[0])

    with pytest.raises(KeyError):
        from_both_ends(todo, fail)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fallback_of_the_gpu_counts_like_the_cpu(dtype: torch.dtype) -> None:
    weights = _weights(dtype)
    counted = count_by_bincount(upper_halfwords(weights)).numpy()
    assert np.array_equal(counted, MagnitudeHistogram.count(weights).counts)


def test_triton_kernel_counts_like_bincount_in_the_interpreter(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    script = textwrap.dedent("""
        import torch
        from essential_sparsity.pruning.histogram import count_by_bincount, upper_halfwords
        from essential_sparsity.pruning.histogram_cuda import count_by_kernel
        torch.manual_seed(0)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for n in (1, 2047, 5000):
                halves = upper_halfwords(torch.randn(n).to(dtype))
                assert torch.equal(count_by_kernel(halves), count_by_bincount(halves)), (dtype, n)
    """)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 1000, 3_000_001])
def test_gpu_counts_like_the_cpu(dtype: torch.dtype, n: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card here")
    weights = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    counted = MagnitudeHistogram.count(weights.cuda())
    assert np.array_equal(counted.counts, MagnitudeHistogram.count(weights).counts)
