"""A ranking cuts exactly, whatever the dtype and the ties, and its masks are nested."""

import gc
import tracemalloc
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning_oracle import sorted_masks
from torch import Tensor, nn
from torch.nn.utils import prune

from essential_sparsity.pruning import Global, Magnitude, Masks, Pruner, Random, Uniform, Unstructured, prunable_weights
from essential_sparsity.pruning import histogram as histogram_module

LEVELS = ["0", "0.1", "0.29", "0.5", "0.77", "0.95", "0.999"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut small weights into several pieces, so that both threads work."""
    monkeypatch.setattr(histogram_module, "CHUNK", 64)


def _weights(dtype: torch.dtype = torch.float32, *, ties: bool = False, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = {f"blocks.{layer}.mlp.fc1.weight": torch.randn(13, 17, generator=generator) for layer in (10, 2, 1)}
    return {name: ((w * 4).round() / 4 if ties else w).to(dtype) for name, w in made.items()}


def _magnitudes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.double().abs() for name, weight in weights.items()}


def _assert_equal(masks: Masks, expected: dict[str, Tensor]) -> None:
    assert list(masks) == list(expected)
    for name, keep in expected.items():
        assert torch.equal(masks[name], keep), name


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_global_masks_equal_sorting_everything(dtype: torch.dtype, ties: bool) -> None:
    weights = _weights(dtype, ties=ties)
    ranking = Pruner().rank(weights)
    for level, together in zip(LEVELS, ranking.masks_at(LEVELS)):
        _assert_equal(together, sorted_masks(_magnitudes(weights), level))
        assert ranking.masks(level).digest() == together.digest() == Pruner()(weights, sparsity=level).digest()
        assert together.num_pruned == int(Fraction(level) * together.num_prunable + Fraction(1, 2))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_uniform_masks_equal_sorting_each_weight(ties: bool) -> None:
    weights = _weights(ties=ties)
    for level, masks in zip(LEVELS, Pruner(Magnitude(), Uniform()).rank(weights).masks_at(LEVELS)):
        for name, weight in weights.items():
            assert torch.equal(masks[name], sorted_masks({name: weight.double().abs()}, level)[name])


@pytest.mark.parametrize("allocation", [Global(), Uniform()])
@pytest.mark.parametrize("score", [Magnitude(), Random(3)])
def test_masks_of_rising_sparsity_are_nested(score: Any, allocation: Any) -> None:
    masks = Pruner(score, allocation).rank(_weights(torch.bfloat16, ties=True)).masks_at(LEVELS)
    assert all(sparser.is_nested_in(denser) for denser, sparser in pairwise(masks))
    assert not masks[0].is_nested_in(masks[1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 0.25, -0.25, 1e-40, 1.0, 3.0, 1.0000001]), min_size=1, max_size=40),
    st.integers(1, 999),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
)
def test_ties_of_every_kind_are_cut_to_the_weight(
    values: list[float], level: int, dtype: torch.dtype, tensors: int
) -> None:
    weights = {f"blocks.{i}.w.weight": torch.tensor([values]).to(dtype) for i in range(tensors)}
    text = str(level / 1000)
    masks = Pruner().rank(weights).masks(text)
    _assert_equal(masks, sorted_masks(_magnitudes(weights), text))


def test_among_equal_weights_the_earlier_is_kept_and_ties_are_counted() -> None:
    weights = {"blocks.10.w.weight": torch.ones(2, 3), "blocks.9.w.weight": -torch.ones(2, 3)}
    masks = Pruner()(weights, sparsity="0.25")
    assert masks["blocks.9.w.weight"].all()
    assert masks["blocks.10.w.weight"].tolist() == [[True, True, True], [False, False, False]]
    assert masks.num_ties == 12
    assert Pruner().rank(weights).num_ties("0.25") == 12
    assert Pruner().rank({"blocks.0.w.weight": torch.tensor([[1.0, 2.0, 2.0, 3.0]])}).num_ties("0.25") == 0


def test_both_zeros_are_equal() -> None:
    weights = {"blocks.0.w.weight": torch.tensor([[0.0, -0.0, 0.0, -0.0, 1.0, -1.0]])}
    assert Pruner()(weights, sparsity="1/3")["blocks.0.w.weight"].tolist() == [[True, True, False, False, True, True]]


@pytest.mark.parametrize("sparsity", [None, 0, 0.0, "0.0"])
def test_dense_keeps_everything(sparsity: Any) -> None:
    masks = Pruner()(_weights(), sparsity=sparsity)
    assert masks.sparsity == 0.0
    assert masks.num_pruned == masks.num_ties == 0
    assert all(masks[name].all() for name in masks)


def test_a_weight_that_rounds_to_nothing_is_removed_whole() -> None:
    weights = {"blocks.0.w.weight": torch.tensor([[3.0]]), "blocks.1.w.weight": torch.tensor([[1.0, 2.0]])}
    ranking = Pruner(Magnitude(), Uniform()).rank(weights)
    masks = ranking.masks("0.5")
    assert not masks["blocks.0.w.weight"].any()
    assert ranking.thresholds(["0.5"])[0] == {"blocks.0.w.weight": float("inf"), "blocks.1.w.weight": 2.0}


@pytest.mark.parametrize("dtype", DTYPES)
def test_thresholds_are_the_smallest_kept_magnitudes(dtype: torch.dtype) -> None:
    weights = _weights(dtype)
    ranking = Pruner().rank(weights)
    for found, masks in zip(ranking.thresholds(LEVELS), ranking.masks_at(LEVELS)):
        kept = torch.cat([weight.double().abs()[masks[name]] for name, weight in weights.items()])
        expected = 0.0 if masks.num_pruned == 0 else float(kept.min())
        assert found == dict.fromkeys(masks, expected)


def test_mixed_dtypes_rank_as_fp32() -> None:
    weights = _weights()
    mixed = dict(zip(weights, [weight.to(dtype) for weight, dtype in zip(weights.values(), DTYPES)]))
    _assert_equal(Pruner()(mixed, sparsity="0.5"), sorted_masks(_magnitudes(mixed), "0.5"))


def test_order_of_the_mapping_and_strides_do_not_matter() -> None:
    weights = _weights()
    shuffled = {name: weights[name].T.contiguous().T for name in sorted(weights)}
    assert not shuffled["blocks.1.mlp.fc1.weight"].is_contiguous()
    assert Pruner()(shuffled, sparsity=0.5).digest() == Pruner()(weights, sparsity=0.5).digest()


# --- random scores ---


def test_random_masks_depend_on_seed_and_names_alone() -> None:
    weights = _weights()
    masks = Pruner(Random(1))(weights, sparsity="0.5")
    other_values = {name: torch.zeros_like(weight, dtype=torch.bfloat16) for name, weight in weights.items()}
    assert Pruner(Random(1))(other_values, sparsity="0.5").digest() == masks.digest()
    assert Pruner(Random(2))(weights, sparsity="0.5").digest() != masks.digest()
    assert masks.num_pruned == round(masks.num_prunable / 2)


def test_random_scores_are_a_function_of_the_place_whatever_the_piece() -> None:
    score, flat = Random(7), torch.empty(1001)
    whole = score.bits("w", flat, 0, 1001, "uint31")
    parts = [score.bits("w", flat, start, min(start + 101, 1001), "uint31") for start in range(0, 1001, 101)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert whole.dtype == np.uint32
    assert whole.max() < 2**31


def test_random_scores_equal_splitmix64_spelled_out() -> None:
    score = Random(7)
    key = score._key("w")
    bits = score.bits("w", torch.empty(20), 0, 20, "uint31")
    for place in range(20):
        z = (key + (place // 2) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        z ^= z >> 31
        assert bits[place] == ((z >> 32 if place % 2 else z % 2**32) >> 1)


def test_random_scores_are_uniform_and_unrelated_between_weights_and_seeds() -> None:
    n = 200_000
    draws = [
        score.bits(name, torch.empty(n), 0, n, "uint31") / 2**31
        for score in (Random(0), Random(1))
        for name in ("blocks.0.w.weight", "blocks.1.w.weight")
    ]
    for draw in draws:
        assert abs(draw.mean() - 0.5) < 5 / np.sqrt(12 * n)
        counts = np.histogram(draw, bins=100, range=(0, 1))[0]
        assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 170  # chi-squared of 99 degrees: 1e-5 tail
        assert abs(np.corrcoef(draw[::2], draw[1::2])[0, 1]) < 5 / np.sqrt(n / 2)
    correlations = np.asarray(np.corrcoef(draws))[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(n)


# --- weights that change ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("allocation", [Global(), Uniform()])
def test_rising_sparsities_walk_down_one_copy(dtype: torch.dtype, allocation: Any) -> None:
    weights = _weights(dtype, ties=True)
    fresh = Pruner(Magnitude(), allocation).rank({name: weight.clone() for name, weight in weights.items()})
    ranking = Pruner(Magnitude(), allocation).rank(weights)
    for level, expected in zip(LEVELS, fresh.masks_at(LEVELS)):
        assert ranking.apply_(weights, level).digest() == expected.digest()
        for name, weight in weights.items():
            assert not weight[~expected[name]].any()
            assert ranking.masks(level).digest() == expected.digest()
    with pytest.raises(ValueError, match=r"of .* weights comes after .* were zeroed: apply rising sparsities"):
        ranking.masks("0.1")


def test_masks_applied_by_hand_are_noticed_too() -> None:
    weights = _weights()
    expected = Pruner().rank({name: weight.clone() for name, weight in weights.items()}).masks("0.6")
    ranking = Pruner().rank(weights)
    ranking.masks("0.3").apply_(weights)
    assert ranking.masks("0.6").digest() == expected.digest()


def test_trained_weights_have_to_be_ranked_again() -> None:
    weights = _weights()
    ranking = Pruner().rank(weights)
    weights["blocks.1.mlp.fc1.weight"].add_(0.1)
    with pytest.raises(ValueError, match="the weights changed since they were ranked"):
        ranking.masks("0.5")


def test_ranking_of_weights_that_are_zero_already() -> None:
    weights = _weights()
    Pruner()(weights, sparsity="0.5").apply_(weights)
    masks = Pruner().rank(weights).masks("0.3")
    _assert_equal(masks, sorted_masks(_magnitudes(weights), "0.3"))


def test_inference_tensors_rank_too() -> None:
    with torch.inference_mode():
        weights = _weights()
        ranking = Pruner().rank(weights)
        assert ranking.apply_(weights, "0.3").num_pruned == round(0.3 * 3 * 13 * 17)
        assert ranking.apply_(weights, "0.6").num_pruned == round(0.6 * 3 * 13 * 17)


# --- errors and descriptions ---


def test_a_bad_weight_is_named_when_ranked() -> None:
    weights = _weights()
    weights["blocks.2.mlp.fc1.weight"][0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'blocks.2.mlp.fc1.weight' has 1 entries that are NaN"):
        Pruner().rank(weights)
    with pytest.raises(ValueError, match="names no weight to rank"):
        Pruner().rank({})


def test_a_wrong_sparsity_is_refused_before_anything_is_counted() -> None:
    with pytest.raises(ValueError, match=r"sparsity=1\.2 lies outside"):
        Pruner()({}, sparsity=1.2)


def test_pruners_are_values_with_descriptions() -> None:
    assert Pruner() == Pruner(Magnitude(), Global(), Unstructured())
    assert repr(Pruner(Random(4))) == (
        "Pruner(score=Random(seed=4), allocation=Global(), pattern=Unstructured(), calibration=None)"
    )
    described = Pruner(Random(4), Uniform()).describe()
    assert described == {"score": "random(seed=4)", "allocation": "uniform", "pattern": "unstructured"}
    masks = Pruner(Random(4), Uniform())(_weights(), sparsity="0.29")
    assert (masks.score, masks.allocation, masks.requested) == ("random(seed=4)", "uniform", Fraction(29, 100))


# --- whole models ---


def _bert_base(dtype: torch.dtype, layers: int = 12) -> dict[str, Tensor]:
    """Random weights in BERT-base's shapes, 7.1M a layer; two-byte ones are full of ties."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"attention.self.query": (768, 768), "attention.self.key": (768, 768), "attention.self.value": (768, 768)}
    shapes |= {"attention.output.dense": (768, 768), "intermediate.dense": (3072, 768), "output.dense": (768, 3072)}
    return {
        f"encoder.layer.{layer}.{rest}.weight": (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for layer in range(layers)
        for rest, shape in shapes.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_85_million_weights_are_cut_exactly_at_20_sparsities(dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    levels = [f"0.{5 * step:02d}" for step in range(20)]
    masks = Pruner().rank(_bert_base(dtype)).masks_at(levels)
    assert masks[0].num_prunable == 84_934_656
    for level, found in zip(levels, masks):
        assert found.num_pruned == int(Fraction(level) * 84_934_656 + Fraction(1, 2))
    assert all(sparser.is_nested_in(denser) for denser, sparser in pairwise(masks))


def test_fp32_masks_equal_those_of_torch_wherever_magnitudes_differ(monkeypatch: Any) -> None:
    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    weights = _bert_base(torch.float32, layers=1)
    modules = {name: nn.Linear(weight.shape[1], weight.shape[0], bias=False) for name, weight in weights.items()}
    with torch.no_grad():
        for name, module in modules.items():
            module.weight.copy_(weights[name])
    parameters = [(module, "weight") for module in modules.values()]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=0.6)
    ranking = Pruner().rank(weights)
    masks, threshold = ranking.masks("0.6"), next(iter(ranking.thresholds(["0.6"])[0].values()))
    for name, module in modules.items():
        theirs = module.get_buffer("weight_mask").bool()
        differ = weights[name].abs() != threshold
        assert torch.equal(masks[name][differ], theirs[differ])


def test_memory_beside_the_masks_stays_under_five_percent_of_the_weights(monkeypatch: Any) -> None:
    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    weights = _bert_base(torch.float32)
    total = sum(weight.nbytes for weight in weights.values())
    levels = [f"0.{5 * step:02d}" for step in range(20)]
    gc.collect()
    tracemalloc.start()  # numpy reports its arrays; torch only allocates the counts of a piece, 256 KiB
    masks = Pruner().rank(weights).masks_at(levels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    packed = sum(bits.nbytes for found in masks for bits in found.bits.values())
    assert peak - packed < 0.05 * total


@pytest.mark.real
def test_a_real_model_is_cut_exactly(es_models: Any, monkeypatch: Any) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    weights = prunable_weights(AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2", dtype=torch.float32))
    assert len(weights) == 36
    everything = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    for level, masks in zip(LEVELS, Pruner().rank(weights).masks_at(LEVELS)):
        assert masks.num_pruned == int(Fraction(level) * everything.numel() + Fraction(1, 2))
        if masks.num_pruned:
            largest_pruned = everything.kthvalue(masks.num_pruned).values
            pruned = torch.cat([weight.detach()[~masks[name]].abs() for name, weight in weights.items()])
            assert pruned.max() == largest_pruned
