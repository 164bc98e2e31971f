"""Masks are a mapping of bool tensors in bits: applied, counted, compared, stored."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from essential_sparsity.pruning import Architecture, Masks, Pruner


def _keep(*shape: int, density: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def _masks(seed: int = 0, **origin: Any) -> Masks:
    return Masks.from_tensors(
        {"blocks.10.w.weight": _keep(3, 5, seed=seed), "blocks.2.w.weight": _keep(2, 4, seed=seed + 1)}, **origin
    )


def test_masks_are_a_mapping_of_bool_tensors_in_the_fixed_order() -> None:
    masks = _masks()
    assert list(masks) == ["blocks.2.w.weight", "blocks.10.w.weight"]
    assert len(masks) == 2
    assert torch.equal(masks["blocks.10.w.weight"], _keep(3, 5))
    assert masks["blocks.10.w.weight"].dtype == torch.bool
    assert "blocks.3.w.weight" not in masks
    with pytest.raises(KeyError):
        masks["blocks.3.w.weight"]


def test_bits_are_row_major_little_and_zero_padded() -> None:
    keep = torch.tensor([[True, False, False], [True, True, False], [False, False, True]])
    masks = Masks.from_tensors({"blocks.0.w.weight": keep})
    assert masks.bits["blocks.0.w.weight"].tolist() == [0b00011001, 0b00000001]


def test_counts_and_sparsity() -> None:
    masks = _masks()
    kept = sum(int(masks[name].sum()) for name in masks)
    assert masks.num_prunable == 23
    assert masks.num_pruned == 23 - kept
    assert masks.sparsity == masks.num_pruned / 23
    assert masks.num_kept("blocks.2.w.weight") == int(masks["blocks.2.w.weight"].sum())
    assert repr(masks) == (
        f"Masks(unknown × unknown × unstructured, sparsity={masks.sparsity:.6g}, {masks.num_pruned} of 23 in 2 tensors)"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_applying_gives_positive_zeros_and_leaves_the_rest(dtype: torch.dtype) -> None:
    masks = _masks()
    before = {name: torch.randn(masks.shapes[name]).to(dtype) for name in masks}
    before["blocks.2.w.weight"][0, 0] = float("nan")
    after = {name: weight.clone() for name, weight in before.items()}
    masks.apply_(after)
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    for name, keep in masks.items():
        expected = before[name].view(integer).clone()
        expected[~keep] = 0
        assert torch.equal(after[name].view(integer), expected)


def test_applying_to_a_model_finds_its_weights() -> None:
    model = nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"w": nn.Linear(4, 4)}) for _ in range(2)])})
    architecture = Architecture.from_patterns(r"blocks\.(\d+)\.", ["w"])
    masks = Masks.from_tensors({f"blocks.{i}.w.weight": _keep(4, 4, seed=i) for i in range(2)})
    masks.apply_(model, architecture=architecture)
    for name, keep in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, keep)
        assert model.get_parameter(name).requires_grad


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"blocks.2.w.weight": (2, 4)}, r"1 masks have no weight \('blocks.10.w.weight'\)"),
        (
            {"blocks.2.w.weight": (2, 4), "blocks.10.w.weight": (3, 5), "blocks.11.w.weight": (1, 1)},
            r"1 weights have no mask \('blocks.11.w.weight'\)",
        ),
        (
            {"blocks.2.w.weight": (2, 4), "blocks.10.w.weight": (5, 3)},
            r"mask 'blocks.10.w.weight' has shape \(3, 5\), the weight \(5, 3\)",
        ),
    ],
)
def test_masks_of_another_model_are_refused_before_anything_changes(weights: Any, message: str) -> None:
    tensors = {name: torch.ones(shape) for name, shape in weights.items()}
    with pytest.raises(ValueError, match=message):
        _masks().apply_(tensors)
    assert all(tensor.all() for tensor in tensors.values())


def test_saved_masks_load_as_they_were(tmp_path: Path) -> None:
    weights = {"blocks.0.w.weight": torch.ones(3, 5), "blocks.1.w.weight": torch.randn(2, 2)}
    masks = Pruner()(weights, sparsity="0.29")
    masks.save(tmp_path / "masks.safetensors")
    loaded = Masks.load(tmp_path / "masks.safetensors")
    assert loaded.digest() == masks.digest()
    assert list(loaded) == list(masks)
    fields = ("shapes", "score", "allocation", "pattern", "requested", "num_ties", "parent", "sparsity")
    assert [getattr(loaded, field) for field in fields] == [getattr(masks, field) for field in fields]
    assert loaded.requested == Fraction(29, 100)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]


def test_the_file_holds_one_bit_per_weight_and_says_what_chose_it(tmp_path: Path) -> None:
    masks = _masks(score="magnitude", allocation="global", parent="abc")
    masks.save(tmp_path / "masks.safetensors")
    with safe_open(tmp_path / "masks.safetensors", framework="numpy") as stored:
        assert sorted(stored.keys()) == sorted(masks)
        assert stored.get_tensor("blocks.10.w.weight").dtype == np.uint8
        assert stored.get_tensor("blocks.10.w.weight").shape == (2,)
        metadata = stored.metadata()
    assert json.loads(metadata["shapes"]) == {"blocks.2.w.weight": [2, 4], "blocks.10.w.weight": [3, 5]}
    assert (metadata["score"], metadata["allocation"], metadata["parent"]) == ("magnitude", "global", "abc")
    assert float(metadata["sparsity"]) == masks.sparsity


def test_files_without_masks_are_refused(tmp_path: Path) -> None:
    save_file({"w": np.ones(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="holds no masks"):
        Masks.load(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Masks.load(tmp_path / "absent.safetensors")
    _masks().save(tmp_path / "masks.safetensors")
    whole = (tmp_path / "masks.safetensors").read_bytes()
    (tmp_path / "masks.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is cut short"):
        Masks.load(tmp_path / "masks.safetensors")


def test_bits_that_do_not_fit_their_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mask 'w' holds uint8 \(1,\), expected uint8 \(2,\)"):
        Masks({"w": np.zeros(1, np.uint8)}, {"w": (3, 5)})
    with pytest.raises(ValueError, match="name different weights"):
        Masks({"w": np.zeros(1, np.uint8)}, {"v": (3,)})


def test_digest_tells_bits_names_and_shapes_apart_but_not_origins() -> None:
    masks = _masks()
    assert masks.digest() == _masks(score="random", num_ties=3).digest()
    assert masks.digest() != _masks(seed=1).digest()
    keep = _keep(2, 4)
    digests = {
        Masks.from_tensors({name: keep.view(shape)}).digest()
        for name, shape in [("a.0.w", (2, 4)), ("a.1.w", (2, 4)), ("a.0.w", (4, 2))]
    }
    assert len(digests) == 3


def test_nested_means_that_the_other_keeps_all_that_this_keeps() -> None:
    all_kept = Masks.from_tensors({name: torch.ones_like(keep) for name, keep in _masks().items()})
    assert _masks().is_nested_in(all_kept)
    assert _masks().is_nested_in(_masks())
    assert not all_kept.is_nested_in(_masks())
    with pytest.raises(ValueError, match=r"the masks cover different weights .'blocks.10.w.weight'"):
        all_kept.is_nested_in(Masks.from_tensors({"blocks.2.w.weight": _keep(2, 4)}))


def test_similarity_equals_its_formulas_on_vectors() -> None:
    ours, theirs = _masks(), _masks(seed=7)
    rows = {row["weight"]: row for row in ours.similarity(theirs)}
    assert list(rows) == [*ours, "total"]
    vectors = {name: (ours[name].double().flatten(), theirs[name].double().flatten()) for name in ours}
    whole = tuple(torch.cat(parts) for parts in zip(*vectors.values()))
    matched = sum(a.mean() * b.mean() * len(a) for a, b in vectors.values()) / (whole[0].sum() * whole[1].sum()).sqrt()
    for name, (a, b) in {**vectors, "total": whole}.items():
        row = {key: float(value) for key, value in rows[name].items() if key != "weight"}
        cosine = float(a @ b / (a.norm() * b.norm()))
        chance = float((a.mean() * b.mean()).sqrt())
        removed = ((1 - a) * (1 - b)).sum() / ((1 - a) + (1 - b) - (1 - a) * (1 - b)).sum()
        assert row == pytest.approx(
            {
                "num": len(a),
                "density": float(a.mean()),
                "other_density": float(b.mean()),
                "cosine": cosine,
                "chance": chance,
                "layer_matched_chance": float(matched) if name == "total" else chance,
                "kappa": (cosine - chance) / (1 - chance),
                "jaccard_removed": float(removed),
                "nested_in_other": float(not (a > b).any()),
                "contains_other": float(not (b > a).any()),
            }
        )
    assert ours.cosine(theirs) == pytest.approx(float(rows["total"]["cosine"]))
    assert ours.cosine(ours) == pytest.approx(1.0)


def test_similarity_of_empty_and_full_masks_is_undefined_not_wrong() -> None:
    full = Masks.from_tensors({"blocks.0.w.weight": torch.ones(2, 2, dtype=torch.bool)})
    empty = Masks.from_tensors({"blocks.0.w.weight": torch.zeros(2, 2, dtype=torch.bool)})
    assert math.isnan(full.cosine(empty))
    assert full.cosine(full) == 1.0
    row = full.similarity(full)[-1]
    assert math.isnan(float(row["kappa"]))
    assert math.isnan(float(row["jaccard_removed"]))


def test_equal_masks_are_equal_files(tmp_path):
    weights = {"ä": torch.randn(3, 5), "b": torch.randn(4, 2)}
    files = set()
    for number in range(8):
        Pruner()(weights, sparsity=0.5).save(tmp_path / f"{number}.safetensors")
        files.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(files) == 1
    assert set(Masks.load(tmp_path / "0.safetensors")) == set(weights)
