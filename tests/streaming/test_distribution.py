"""Distributions per layer and kind: exact counts, q, k and v apart, three scalings that agree with the weights."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from essential_sparsity.analysis.distribution import SCALINGS, WeightDistribution, distribution_table
from essential_sparsity.runs import Run, read_run
from essential_sparsity.streaming.distribution import measure_distribution


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Give two blocks of a ViT in timm's names: query wide, value off-centre, one exact zero in the projection."""
    random = torch.Generator().manual_seed(0)
    found = {}
    for layer in range(2):
        parts = [torch.randn(32, 32, generator=random) for _ in range(3)]
        fused = torch.cat([3 * parts[0], parts[1], 0.1 * parts[2] + 0.05])
        found[f"blocks.{layer}.attn.qkv.weight"] = fused
        found[f"blocks.{layer}.attn.qkv.bias"] = torch.zeros(96)
        for name, shape in (("attn.proj", (32, 32)), ("mlp.fc1", (64, 32)), ("mlp.fc2", (32, 64))):
            found[f"blocks.{layer}.{name}.weight"] = torch.randn(shape, generator=random)
        found[f"blocks.{layer}.attn.proj.weight"][0, 0] = 0.0
    return found


@pytest.fixture(scope="module")
def measured(weights: dict[str, torch.Tensor]) -> WeightDistribution:
    """Give their distribution."""
    return WeightDistribution.from_table(pa.Table.from_pylist(measure_distribution(weights)), name="vit")


def test_query_key_and_value_are_kinds_of_their_own(measured, weights) -> None:
    assert measured.kinds == ["attention_output", "query", "key", "value", "mlp_in", "mlp_out"]
    assert measured.layers == [0, 1]
    value = weights["blocks.1.attn.qkv.weight"][64:]
    line = measured.lines[(measured.lines["layer"] == 1) & (measured.lines["kind"] == "value")].iloc[0]
    assert line["mean"] == pytest.approx(value.mean().item(), abs=1e-6)
    assert line["std"] == pytest.approx(value.std(unbiased=False).item(), rel=1e-5)
    assert line["rms"] == pytest.approx(value.square().mean().sqrt().item(), rel=1e-5)
    assert (line["least"], line["largest"]) == (value.min().item(), value.max().item())


def test_near_zero_is_counted_against_each_part_s_own_rms(measured, weights) -> None:
    query = weights["blocks.0.attn.qkv.weight"][:32]
    share = (query.abs() < 0.05 * query.square().mean().sqrt()).float().mean().item()
    assert measured.shares("layer", "kind")[0, "query"] == pytest.approx(share)
    assert measured.lines["num_zeros"].sum() == 2
    assert measured.lines["num"].sum() == sum(w.numel() for w in weights.values() if w.ndim == 2)
    assert measured.share == pytest.approx(measured.lines["num_near"].sum() / measured.lines["num"].sum())


@pytest.mark.parametrize("scaling", SCALINGS)
def test_densities_are_those_of_the_scaled_weights(measured, weights, scaling: str) -> None:
    value = weights["blocks.0.attn.qkv.weight"][64:].double().numpy().ravel()
    scaled = {
        "rms": value / np.sqrt((value**2).mean()),
        "standard": (value - value.mean()) / value.std(),
        "min-max": (value - value.min()) / (value.max() - value.min()),
    }[scaling]
    edges, density = measured.density(scaling, layer=0, kind="value", merge=4)
    oracle = np.histogram(scaled, edges)[0]
    assert np.abs(density * np.diff(edges) * value.size - oracle).max() <= 2  # float32 at the edges
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    zero = measured.zero(scaling, layer=0, kind="value")
    assert np.interp(0.0, np.sort(value), np.sort(scaled)) == pytest.approx(zero, abs=1e-5)


def test_zero_by_min_max_is_not_weight_zero(measured) -> None:
    table = distribution_table([measured])
    value = table[(table["layer"] == 0) & (table["kind"] == "value")].iloc[0]
    assert 0.05 < value["zero_by_min_max"] < 0.95
    assert set(table["model"]) == {"vit"} and table["near_zero"].between(0, 0.2).all()


def test_one_matrix_is_held_at_a_time_and_the_table_survives_its_file(weights, tmp_path) -> None:
    asked = []

    class Lazy(dict):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return super().__getitem__(name)

    rows = measure_distribution(Lazy(weights))
    assert asked == sorted(asked) and len(asked) == 8
    run = Run(tmp_path / "r")
    run.start({"config": {"seed": 0}})
    assert read_run(run.path).distribution() is None
    run.write_distribution(rows)
    table = read_run(run.path).distribution()
    assert table is not None and table.to_pylist() == rows


def test_outliers_are_counted_and_dead_matrices_measured() -> None:
    weights = {f"blocks.0.{name}.weight": torch.zeros(6, 4) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    weights["blocks.0.mlp.fc1.weight"] = torch.ones(2, 400)
    weights["blocks.0.mlp.fc1.weight"][0, 0] = -100.0  # 27 RMS away
    rows = {row["kind"]: row for row in measure_distribution(weights)}
    assert rows["mlp_in"]["counts"][0] == 1 and sum(rows["mlp_in"]["counts"]) == 800
    assert rows["attention_output"]["num_near"] == rows["attention_output"]["num_zeros"] == 24


def test_what_cannot_be_measured_is_named(measured, weights) -> None:
    broken = {**weights, "blocks.1.mlp.fc2.weight": torch.full((32, 64), torch.nan)}
    with pytest.raises(ValueError, match=r"blocks.1.mlp.fc2.weight' holds NaN or infinity"):
        measure_distribution(broken)
    with pytest.raises(ValueError, match="scaling='max' is none: choose one of rms, standard, min-max"):
        measured.density("max", layer=0, kind="value")
    with pytest.raises(ValueError, match="vit has no 'gate' in layer 0: choose of attention_output"):
        measured.density("rms", layer=0, kind="gate")
