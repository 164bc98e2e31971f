"""Allocations share zeros exactly: Erdős-Rényi by the published formula, rows each alone, shares by pattern."""

from fractions import Fraction
from itertools import pairwise
from math import floor, prod
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from essential_sparsity.pruning import (
    NM,
    Architecture,
    ErdosRenyi,
    Explicit,
    Global,
    Magnitude,
    PerRow,
    Pruner,
    Random,
    prunable_weights,
)
from essential_sparsity.pruning import histogram as histogram_module
from essential_sparsity.pruning.architecture import FAMILIES, fused_parts

LEVELS = ["0", "0.1", "0.29", "0.5", "0.77", "0.95", "0.999"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TIMM = next(family for family in FAMILIES if family.family == "timm_vit")
GPT2 = next(family for family in FAMILIES if family.family == "gpt2")
CONV1D = Architecture.from_patterns(r"blocks\.(\d+)\.", ["*"], input_axis=0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut small weights into several pieces, so that both threads work."""
    monkeypatch.setattr(histogram_module, "CHUNK", 128)


def _weights(dtype: torch.dtype = torch.float32, *, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"blocks.{layer}.mlp.fc1.weight": torch.randn(13, 17, generator=generator) for layer in (10, 2, 1)}
    return {name: ((w * 4).round() / 4 if ties else w).to(dtype) for name, w in made.items()}


def _vit() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn.qkv": (24, 8), "attn.proj": (8, 8), "mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    return {
        f"blocks.{layer}.{rest}.weight": torch.randn(shape, generator=generator)
        for layer in range(2)
        for rest, shape in shapes.items()
    }


def stably_sorted_rows(rows: Tensor, sparsity: str) -> Tensor:
    """Prune each row's floor(s n + 1/2) smallest; among equal ones the later goes first."""
    count = floor(Fraction(sparsity) * rows.shape[1] + Fraction(1, 2))
    order = torch.sort(rows.double().flip(1), dim=1, stable=True).indices
    keep = torch.ones(rows.shape, dtype=torch.bool).scatter(1, order[:, :count], False)
    return keep.flip(1)


# --- per row ---


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_equal_a_stable_sort_of_each(dtype: torch.dtype, ties: bool) -> None:
    weights = _weights(dtype, ties=ties)
    ranking = Pruner(Magnitude(), PerRow()).rank(weights)
    for level, masks in zip(LEVELS, ranking.masks_at(LEVELS)):
        for name, weight in weights.items():
            assert torch.equal(masks[name], stably_sorted_rows(weight.abs(), level))
        assert ranking.masks(level).digest() == masks.digest()


def test_rows_of_a_transposed_matrix_are_its_columns() -> None:
    weights = _weights(ties=True)
    turned = {name: weight.T.contiguous() for name, weight in weights.items()}
    for level in LEVELS:
        expected = Pruner(allocation=PerRow())(weights, sparsity=level)
        masks = Pruner(allocation=PerRow())(turned, sparsity=level, architecture=CONV1D)
        assert all(torch.equal(masks[name].T, expected[name]) for name in masks)
        assert masks.num_ties == expected.num_ties


@pytest.mark.parametrize("width", [1, 2, 4, 5, 8, 16, 100])
@pytest.mark.parametrize("score", [Magnitude(), Random(1)])
def test_rows_of_rising_sparsity_are_nested_whatever_their_width(score: Any, width: int) -> None:
    weights = {"blocks.0.w.weight": (torch.randn(31, width) * 3).round()}
    masks = Pruner(score, PerRow()).rank(weights).masks_at(LEVELS)
    assert all(sparser.is_nested_in(denser) for denser, sparser in pairwise(masks))
    for level, found in zip(LEVELS, masks):
        count = floor(Fraction(level) * width + Fraction(1, 2))
        assert (found["blocks.0.w.weight"].sum(dim=1) == width - count).all()


def test_split_ties_of_rows_are_counted() -> None:
    weights = {"blocks.0.w.weight": torch.tensor([[2.0, 1.0, 1.0, 1.0, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0]])}
    ranking = Pruner(allocation=PerRow()).rank(weights)
    assert ranking.masks("0.4").num_ties == ranking.num_ties("0.4") == 3
    assert ranking.masks("0.6").num_ties == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_walk_down_one_copy(dtype: torch.dtype) -> None:
    weights = _weights(dtype, ties=True)
    expected = Pruner(allocation=PerRow()).rank({n: w.clone() for n, w in weights.items()}).masks_at(LEVELS)
    ranking = Pruner(allocation=PerRow()).rank(weights)
    for level, masks in zip(LEVELS, expected):
        assert ranking.apply_(weights, level).digest() == masks.digest() == ranking.masks(level).digest()
    with pytest.raises(ValueError, match=r"pruning .* weights of 'blocks.* comes after .* were zeroed: apply rising"):
        ranking.masks("0.1")


def test_rows_of_trained_weights_have_to_be_ranked_again() -> None:
    weights = _weights()
    ranking = Pruner(allocation=PerRow()).rank(weights)
    weights["blocks.1.mlp.fc1.weight"].add_(0.1)
    with pytest.raises(ValueError, match="the weights changed since they were ranked"):
        ranking.masks("0.5")


def test_thresholds_of_rows_are_the_smallest_kept_of_each_weight() -> None:
    weights = _weights()
    ranking = Pruner(allocation=PerRow()).rank(weights)
    masks = ranking.masks("0.5")
    assert ranking.thresholds(["0.5"]) == [{name: float(weights[name].abs()[masks[name]].min()) for name in masks}]


# --- Erdős-Rényi ---


def published_densities(shapes: dict[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    """RigL's own loop (get_mask_init_fn, sparsity 'erdos_renyi_kernel'), tensors capped at dense one by one."""
    dense: set[str] = set()
    while True:
        divisor = rhs = 0.0
        raw = {}
        for name, shape in shapes.items():
            n = prod(shape)
            if name in dense:
                rhs -= n * sparsity
            else:
                rhs += n * (1 - sparsity)
                raw[name] = sum(shape) / prod(shape)
                divisor += raw[name] * n
        epsilon = rhs / divisor
        if max(raw.values()) * epsilon <= 1:
            return {name: 1.0 if name in dense else epsilon * raw[name] for name in shapes}
        dense |= {name for name, value in raw.items() if value == max(raw.values())}


SHAPES = {"a": (768, 768), "b": (3072, 768), "c": (768, 3072), "d": (64, 3, 7, 7), "e": (16, 16), "f": (8, 128)}


@pytest.mark.parametrize("sparsity", ["0.1", "0.5", "0.9", "0.98"])
def test_shares_equal_the_published_formula(sparsity: str) -> None:
    found = ErdosRenyi(kernel=True).densities(Fraction(sparsity), SHAPES)
    expected = published_densities(SHAPES, float(sparsity))
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-9)


def test_the_kernel_counts_for_convolutions_alone() -> None:
    matrices = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}
    level = Fraction(9, 10)
    assert ErdosRenyi().densities(level, matrices) == ErdosRenyi(kernel=True).densities(level, matrices)
    assert ErdosRenyi().densities(level, SHAPES) != ErdosRenyi(kernel=True).densities(level, SHAPES)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8),
    st.integers(0, 999),
    st.integers(0, 999),
    st.booleans(),
)
def test_shares_add_up_exactly_and_counts_are_monotone(
    shapes: list[tuple[int, int]], first: int, second: int, kernel: bool
) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    low, high = sorted((Fraction(first, 1000), Fraction(second, 1000)))
    allocation = ErdosRenyi(kernel)
    densities = allocation.densities(high, named)
    assert all(0 < density <= 1 for density in densities.values())
    assert sum(densities[n] * prod(s) for n, s in named.items()) == (1 - high) * sum(map(prod, shapes))
    fewer, more = (allocation.nums_pruned(level, named, None) for level in (low, high))
    assert all(a <= b for a, b in zip(fewer, more))


@pytest.mark.parametrize("score", [Magnitude(), Random(2)])
def test_each_tensor_loses_its_count_and_masks_are_nested(score: Any) -> None:
    weights = _vit()
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    ranking = Pruner(score, ErdosRenyi(kernel=True)).rank(weights)
    masks = ranking.masks_at(LEVELS)
    for level, found in zip(LEVELS, masks):
        counts = ErdosRenyi(kernel=True).nums_pruned(Fraction(level), shapes, None)
        assert [found.num(name) - found.num_kept(name) for name in shapes] == counts
    assert masks[0].num_pruned == 0
    assert all(sparser.is_nested_in(denser) for denser, sparser in pairwise(masks))


def test_a_vector_has_no_erdos_renyi_share() -> None:
    with pytest.raises(ValueError, match=r"'a' of shape \(3,\) is no matrix"):
        ErdosRenyi().densities(Fraction(1, 2), {"a": (3,)})


# --- explicit ---


def test_patterns_name_weights_and_the_last_that_matches_counts() -> None:
    weights = _vit()
    allocation = Explicit({"*.mlp.*": 0.5, "blocks.1.*": "0.25", "blocks.1.mlp.fc2.weight": 1.0}, otherwise=0.125)
    masks = Pruner(allocation=allocation)(weights)
    lost = {name: 1 - masks.num_kept(name) / masks.num(name) for name in masks}
    assert lost == {
        "blocks.0.attn.proj.weight": 0.125,
        "blocks.0.attn.qkv.weight": 0.125,
        "blocks.0.mlp.fc1.weight": 0.5,
        "blocks.0.mlp.fc2.weight": 0.5,
        "blocks.1.attn.proj.weight": 0.25,
        "blocks.1.attn.qkv.weight": 0.25,
        "blocks.1.mlp.fc1.weight": 0.25,
        "blocks.1.mlp.fc2.weight": 1.0,
    }
    assert masks.requested is None


def test_a_list_has_one_number_per_weight_in_the_fixed_order() -> None:
    weights = _weights()
    masks = Pruner(allocation=Explicit([0, 0.5, Fraction(1, 3)]))(weights)
    assert [masks.num(name) - masks.num_kept(name) for name in masks] == [0, 111, 74]
    for value, name in zip(["0.5", "1/3"], list(masks)[1:]):
        alone = Pruner()({name: weights[name]}, sparsity=value)
        assert torch.equal(masks[name], alone[name])
    with pytest.raises(ValueError, match="sparsities lists 2 numbers for 3 prunable weights"):
        Pruner(allocation=Explicit([0.5, 0.5]))(weights)


@pytest.mark.parametrize("family", [TIMM, GPT2], ids=["linear", "conv1d"])
def test_a_kind_is_cut_out_of_a_fused_matrix(family: Architecture) -> None:
    name = "blocks.0.attn.qkv.weight" if family is TIMM else "h.0.attn.c_attn.weight"
    other = "blocks.0.mlp.fc1.weight" if family is TIMM else "h.0.mlp.c_fc.weight"
    generator = torch.Generator().manual_seed(0)
    shape = (15, 7) if family is TIMM else (7, 15)
    weights = {name: torch.randn(shape, generator=generator), other: torch.randn(4, 7, generator=generator)}
    pruner = Pruner(allocation=Explicit({"kind:query": 0.5, "kind:key": 0.8, "kind:mlp_in": 0.25}))
    ranking = pruner.rank(weights, architecture=family)
    masks = ranking.masks(None)
    parts, kept = fused_parts(name, weights[name], family), fused_parts(name, masks[name], family)
    for kind, share in (("query", "0.5"), ("key", "0.8"), ("value", "0")):
        alone = Pruner()({"blocks.0.w.weight": parts[kind]}, sparsity=share)["blocks.0.w.weight"]
        assert torch.equal(kept[kind], alone)
    assert masks.num(other) - masks.num_kept(other) == 7
    assert set(ranking.thresholds([None])[0]) == {*(f"{name}[{kind}]" for kind in parts), other}


def test_a_fused_matrix_is_one_weight_unless_a_part_is_named() -> None:
    weights = _vit()
    whole = Pruner(allocation=Explicit({"kind:qkv": 0.5}))(weights)
    named = Pruner(allocation=Explicit({"*.attn.qkv.weight": 0.5}))(weights)
    assert whole.digest() == named.digest()
    assert whole.num_pruned == 2 * 96


def test_explicit_shares_leave_no_sparsity_to_give() -> None:
    pruner, weights = Pruner(allocation=Explicit({"*": 0.5})), _weights()
    assert pruner.resolve(None) is None
    assert pruner.resolve(0.0) == 0
    assert pruner(weights, sparsity=0.0).num_pruned == 0
    with pytest.raises(
        ValueError, match=r"sparsity=0.5 contradicts a pruner with explicit sparsities: give sparsity=null"
    ):
        pruner.resolve(0.5)
    with pytest.raises(ValueError, match="pattern 2:4 leaves nothing for explicit"):
        Pruner(allocation=Explicit({"*": 0.5}), pattern=NM(2, 4))
    assert pruner.describe()["allocation"] == "explicit(*: 0.5; otherwise 0)"
    assert Explicit([0.5, 0]).describe() == "explicit(0.5, 0)"


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"kind:qurey": 0.5}, "pattern 'kind:qurey' matches no prunable weight: did you mean 'kind:query'?"),
        ({"blocks.0.mlp.fc3.weight": 0.5}, "matches no prunable weight: did you mean 'blocks.0.mlp.fc[12].weight'"),
        ({"layers.*": 0.5}, "pattern 'layers.*' matches no prunable weight"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(sparsities: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruner(allocation=Explicit(sparsities))(_vit())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "names no weight"),
        (("0.5",), "names no weight"),
        (({"*": 1.5},), "sparsity=1.5 lies outside"),
        (({"*": None},), "sparsities holds null"),
        (([0.5, "50%"],), "is a percentage"),
        (({"*": 0.5}, 2), "sparsity=2 lies outside"),
    ],
)
def test_wrong_shares_are_refused_when_they_are_given(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Explicit(*arguments)


def test_allocations_have_names() -> None:
    names = [a.describe() for a in (Global(), PerRow(), ErdosRenyi(), ErdosRenyi(kernel=True))]
    assert names == ["global", "per row", "erdos-renyi", "erdos-renyi-kernel"]


# --- whole models ---


def test_prune_chooses_without_changing_the_model() -> None:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=4))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pruner = Pruner(allocation=PerRow())
    pruned = pruner.prune(model, sparsity=0.5)
    assert pruned.weights is None and pruned.notes == {}
    assert pruned.masks.digest() == pruner(prunable_weights(model), sparsity=0.5).digest()
    for name in pruned.masks:
        assert (pruned.masks[name].sum(dim=0) == pruned.masks[name].shape[0] // 2).all()  # [in, out]
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.real
def test_real_rows_lose_exactly_their_share(es_models: Any, monkeypatch: Any) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    model = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2", dtype=torch.float32)
    masks = Pruner(allocation=PerRow()).prune(model, sparsity="0.3").masks
    for name, weight in prunable_weights(model).items():
        count = int(np.floor(0.3 * weight.shape[1] + 0.5))
        assert ((~masks[name]).sum(dim=1) == count).all()
        pruned = weight.detach().abs().masked_fill(masks[name], 0).amax(dim=1)
        assert (pruned <= weight.detach().abs().masked_fill(~masks[name], torch.inf).amin(dim=1)).all()
