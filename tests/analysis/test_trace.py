"""SparsityTrace answers for any zero afterwards: exact at bin edges and bounded between, as a loop says."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from essential_sparsity.analysis import SparsityTrace
from essential_sparsity.pruning import MagnitudeHistogram
from essential_sparsity.pruning.moments import measure
from essential_sparsity.traces import drop_records, merge_records, read_trace, write_record

NAMES = {
    "blocks.0.attn.weight": (0, "attn"),
    "blocks.0.mlp.weight": (0, "mlp"),
    "blocks.1.attn.weight": (1, "attn"),
    "blocks.1.mlp.weight": (1, "mlp"),
}
STEPS = (0, 50, 100)
DECAY = {0: 1.0, 50: 0.9, 100: 0.7}


def drawn(seed: int = 0) -> dict[int, dict[str, torch.Tensor]]:
    """Draw three steps of four weights; some entries are exactly zero, step 100 is step 0 shrunk by decay alone."""
    generator = torch.Generator().manual_seed(seed)
    at = {step: {name: 0.02 * torch.randn(40, 25, generator=generator) for name in NAMES} for step in STEPS[:2]}
    at[50]["blocks.0.mlp.weight"][:10] = 0.0
    at[100] = {name: weight * DECAY[100] for name, weight in at[0].items()}
    return at


def record(folder: Path, step: int, weights: dict[str, torch.Tensor]) -> None:
    found = measure(weights)
    lines = [
        {"weight": name, "layer": NAMES[name][0], "kind": NAMES[name][1], "lr": 0.1, "lr_sum": 0.1 * step,
         "decay_factor": DECAY[step], "loss": 2.0, "tokens": 10 * step, "seconds": 1.0, **found.moments(i)}
        for i, name in enumerate(weights)
    ]  # fmt: skip
    write_record(folder, step, dict(zip(weights, found.counts)), lines)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run folder with three records, not merged."""
    path = tmp_path_factory.mktemp("run")
    for step, weights in drawn().items():
        record(path, step, weights)
    return path


@pytest.fixture(scope="module")
def trace(folder: Path) -> SparsityTrace:
    return SparsityTrace.read(folder)


def below(weights: dict[str, torch.Tensor], limits: dict[str, float]) -> int:
    return sum(int((weight.double().abs() < limits[name]).sum()) for name, weight in weights.items())


def rms(weights: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(weight.double().square().mean().sqrt()) for name, weight in weights.items()}


@pytest.mark.parametrize("multiple", [0.05, 0.1, 0.5, 2.0])
def test_counts_hold_the_truth_between_their_bounds(trace, multiple: float) -> None:
    at = drawn()
    for zero, scales in (("relative", {s: rms(at[s]) for s in STEPS}), ("absolute", dict.fromkeys(STEPS, rms(at[0])))):
        table = trace.table(zero, multiple=multiple)
        for line in table.to_dict("records"):
            limits = {name: multiple * value for name, value in scales[line["step"]].items()}
            truth = below(at[line["step"]], limits)
            assert line["at_least"] <= truth <= line["at_most"]
            assert line["at_least"] <= line["count"] <= line["at_most"]
            assert line["at_most"] - line["at_least"] <= 0.03 * line["num"]
            assert line["count"] == pytest.approx(truth, abs=0.004 * line["num"])
            assert line["num"] == 4000 and line["share"] == line["count"] / 4000


@pytest.mark.parametrize("edge", [0.015625, 0.02734375, 2.0**-10])
def test_a_threshold_that_is_a_bin_s_edge_is_exact(trace, edge: float) -> None:
    at = drawn()
    for line in trace.table(edge).to_dict("records"):
        truth = below(at[line["step"]], dict.fromkeys(NAMES, edge))
        assert line["at_least"] == line["count"] == line["at_most"] == truth


def test_exact_zeros_are_counted_as_such(trace) -> None:
    assert trace.share("exact", by="kind").to_numpy().tolist() == [[0, 0], [0, 250 / 2000], [0, 0]]
    assert (trace.table(0.0)["count"] == 0).all()  # nothing is smaller than 0


@pytest.mark.parametrize("by", ["layer", "kind", "weight"])
def test_groups_add_up_to_the_total(trace, by: str) -> None:
    parts, total = trace.table(by=by), trace.table()
    for column in ("num", "at_least", "count", "at_most"):
        np.testing.assert_allclose(parts.groupby("step")[column].sum(), total[column])
    assert trace.share(by=by).columns.tolist() == {
        "layer": [0, 1], "kind": ["attn", "mlp"], "weight": list(NAMES)
    }[by]  # fmt: skip


def test_decay_alone_shrinks_the_first_record(trace) -> None:
    relative = trace.decay_only("relative")["total"]
    assert (relative == relative.iloc[0]).all() and relative[0] == trace.share()["total"][0]
    absolute = trace.decay_only("absolute")["total"]
    assert absolute[0] < absolute[50] < absolute[100]
    assert absolute[100] == pytest.approx(trace.share("absolute")["total"][100], abs=0.002)  # it is decay alone
    assert trace.decay_only("exact")["total"].tolist() == [0, 0, 0]


def test_shape_is_that_of_the_weights(trace) -> None:
    at = drawn()
    whole = torch.cat([weight.flatten() for weight in at[50].values()]).double()
    ordered, n = whole.abs().sort().values, len(whole)
    gini = float(2 * (torch.arange(1, n + 1) * ordered).sum() / (n * ordered.sum()) - (n + 1) / n)
    assert trace.gini()["total"][50] == pytest.approx(gini, abs=5e-4)
    kurtosis = float(n * (whole**4).sum() / (whole**2).sum() ** 2)
    assert trace.kurtosis()["total"][50] == pytest.approx(kurtosis, rel=1e-5)
    assert trace.gini()["total"][0] == pytest.approx(np.sqrt(2) - 1, abs=0.01)  # a Gaussian
    assert trace.kurtosis("layer")[0][0] == pytest.approx(trace.kurtosis("layer")[0][100], rel=1e-5)
    assert trace.gini("layer")[0][0] == pytest.approx(trace.gini("layer")[0][100], abs=1e-3)  # scale changes nothing


def test_a_gaussian_has_3_99_percent_near_zero() -> None:
    weights = {"w": torch.randn(10**6, generator=torch.Generator().manual_seed(0))}
    trace: Any = SparsityTrace.from_histograms({0: {"w": MagnitudeHistogram.count(weights["w"])}})
    assert trace.share()["total"][0] == pytest.approx(0.0399, abs=0.0005)


def test_merged_and_unmerged_records_read_the_same(folder: Path, trace, tmp_path: Path) -> None:
    for step, weights in drawn().items():
        record(tmp_path, step, weights)
    merge_records(tmp_path)
    for file in (tmp_path / "trace").iterdir():
        file.unlink()
    merged: Any = SparsityTrace.read(tmp_path)
    assert merged.table(by="weight").equals(trace.table(by="weight"))
    assert merged.progress.equals(trace.progress)
    assert merged.progress["tokens"].tolist() == [0, 500, 1000]


def test_stored_histograms_are_small_and_as_specified(folder: Path) -> None:
    file = pq.ParquetFile(folder / "trace/step=00000050.parquet")
    types = {field.name: str(field.type) for field in file.schema_arrow}
    assert types["step"] == "int32" and types["bin"] == "uint16" and types["count"] == "uint32"
    assert types["weight"].startswith("dictionary")
    column = file.metadata.row_group(0).column(2)
    assert "DELTA_BINARY_PACKED" in column.encodings and column.compression == "ZSTD"
    assert file.schema_arrow.metadata[b"code"] == b"bfloat16"


def test_histograms_of_memory_give_nearly_the_same(trace) -> None:
    made = {
        step: {name: MagnitudeHistogram.count(weight) for name, weight in weights.items()}
        for step, weights in drawn().items()
    }
    other: Any = SparsityTrace.from_histograms(made, lr_sum={0: 0, 50: 5, 100: 10})
    np.testing.assert_allclose(other.share()["total"], trace.share()["total"], atol=3e-4)
    np.testing.assert_allclose(other.kurtosis()["total"], trace.kurtosis()["total"], rtol=0.01)
    assert other.progress["lr_sum"].tolist() == [0, 5, 10]
    half = {0: {"w": MagnitudeHistogram.count(torch.ones(3).half())}}
    with pytest.raises(ValueError, match="'w' was counted as float16: count it in float32"):
        SparsityTrace.from_histograms(half)


def test_wrong_questions_are_one_line(trace, tmp_path: Path) -> None:
    for call, line in (
        (lambda: trace.share("relativ"), "zero='relativ' is no definition of zero: choose relative, absolute, exact"),
        (lambda: trace.share(by="block"), "by='block' is no way to group weights: choose one of total"),
        (lambda: trace.share(multiple=-1), r"multiple=-1 lies outside \[0, inf\)"),
        (lambda: trace.share(float("nan")), r"zero=nan lies outside \[0, inf\)"),
    ):
        with pytest.raises(ValueError, match=line):
            call()
    with pytest.raises(FileNotFoundError, match="has no trace: record one"):
        SparsityTrace.read(tmp_path)


def test_a_record_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    at = drawn()
    record(tmp_path, 0, at[0])
    record(tmp_path, 50, {name: at[50][name] for name in list(NAMES)[:3]})
    with pytest.raises(ValueError, match="the record of step 50 has 3 weights, others 4"):
        SparsityTrace.read(tmp_path)
    drop_records(tmp_path, after=0)
    assert len(SparsityTrace.read(tmp_path).steps) == 1
    assert read_trace(tmp_path)[0].num_rows > 0
