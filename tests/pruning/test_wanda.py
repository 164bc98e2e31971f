"""Wanda's masks are those of its definition, row by row and matrix by matrix, and counts are exact."""

import copy
import json
import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_oracle import (
    FAMILIES,
    inputs_of,
    nm_keep,
    pruned_in_turn,
    single_rows,
    tiny_batches,
    tiny_model,
    wanda_keep,
)
from pruning_oracle import sorted_masks
from torch import Tensor

from essential_sparsity.pruning import (
    NM,
    ErdosRenyi,
    Global,
    Masks,
    PerRow,
    Pruner,
    Uniform,
    layer_of,
    prunable_weights,
)
from essential_sparsity.pruning.activations import InputNorms, gather
from essential_sparsity.pruning.architecture import architecture_of
from essential_sparsity.pruning.scores import ActivationNorm
from essential_sparsity.pruning.wanda import _by_ranking, _on_card, keep_of_rows, packed

WANDA = Pruner(ActivationNorm(), PerRow())
WANDA_24 = Pruner(ActivationNorm(), PerRow(), NM(2, 4))
DENSE = Pruner(ActivationNorm("dense"), PerRow())


def _half_of_each_row(_: str, weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    keep = wanda_keep(weight, inputs, weight.shape[1] // 2)
    return weight * keep, keep


def _two_of_four(_: str, weight: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    keep = nm_keep(weight.abs().double() * inputs.double().norm(dim=0), 2, 4)
    return weight * keep, keep


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("pruner", "sparsity", "plain"), [
    (WANDA, "0.5", _half_of_each_row),
    (WANDA_24, None, _two_of_four),
], ids=["half", "2:4"])  # fmt: skip
def test_masks_equal_the_definition_row_by_row(family: str, pruner: Pruner, sparsity: Any, plain: Any) -> None:
    model, batches = tiny_model(family), tiny_batches(family)
    before = copy.deepcopy(model.state_dict())
    found = pruner.prune(model, sparsity=sparsity, batches=batches)
    _, keeps = pruned_in_turn(model, batches, plain)
    assert list(found.masks) == list(keeps)
    for name, keep in keeps.items():
        assert torch.equal(found.masks[name], keep), name
    assert found.weights is None and found.notes == {"num_calibration_rows": 12}
    assert found.masks.sparsity == 0.5 and found.masks.requested == Fraction(1, 2)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_masks_equal_the_definition_on_a_real_model(es_models: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (3, 24), generator=generator)
    batch = {"input_ids": ids, "attention_mask": (torch.arange(24) < torch.tensor([[24], [9], [17]])).long()}
    masks = WANDA.prune(model, sparsity="0.5", batches=[batch]).masks
    singles, pruned = single_rows([batch]), copy.deepcopy(model)
    for layer in (0, 1):
        own = {name: weight for name, weight in prunable_weights(pruned).items() if layer_of(name) == layer}
        for name, weight in own.items():
            scores = weight.detach().abs().double() * inputs_of(pruned, weight, singles).double().norm(dim=0)
            order = scores.argsort(dim=1, stable=True, descending=True)
            keep = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, : scores.shape[1] // 2], True)
            assert (masks[name] != keep).float().mean() < 1e-4, name  # ties of rounding
        with torch.no_grad():
            for name, weight in own.items():
                weight.mul_(masks[name])


@pytest.mark.parametrize("allocation", [Global(), Uniform(), PerRow(), ErdosRenyi()], ids=lambda a: a.describe())
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_norms_of_the_dense_model_give_nested_masks(allocation: Any, family: str) -> None:
    model, batches = tiny_model(family), tiny_batches(family)
    pruner, statistics = Pruner(ActivationNorm("dense"), allocation), gather(model, batches, InputNorms)
    weights = prunable_weights(model)
    levels = ["0", "0.2", "0.5", "0.9"]
    masks = pruner.rank(weights, statistics=statistics).masks_at(levels)
    assert all(sparser.is_nested_in(denser) for denser, sparser in pairwise(masks))
    for level, mask in zip(levels, masks, strict=True):
        assert pruner.prune(model, sparsity=level, batches=batches).masks.digest() == mask.digest()
    assert masks[2].sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_global_masks_equal_sorting_all_scores(family: str) -> None:
    model, batches = tiny_model(family, num_layers=2), tiny_batches(family)
    statistics, weights = gather(model, batches, InputNorms), prunable_weights(model)
    axis = 0 if family == "gpt2" else 1
    scores = {n: w.detach().abs() * (statistics[n] if axis else statistics[n][:, None]) for n, w in weights.items()}
    found = Pruner(ActivationNorm("dense"), Global())(weights, sparsity="0.37", statistics=statistics)
    for name, keep in sorted_masks(scores, "0.37").items():
        assert torch.equal(found[name], keep)


def test_a_ranking_walks_a_curve_in_one_copy() -> None:
    model, batches = tiny_model("opt"), tiny_batches("opt")
    statistics, weights = gather(model, batches, InputNorms), prunable_weights(model)
    apart = [DENSE(weights, sparsity=level, statistics=statistics).digest() for level in ("0.2", "0.5", "0.8")]
    ranking = DENSE.rank(weights, statistics=statistics)
    assert [ranking.apply_(weights, level).digest() for level in ("0.2", "0.5", "0.8")] == apart


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", ["0.1", "0.29", "0.77"])
def test_counts_of_rows_are_exact_in_half_precision(dtype: torch.dtype, level: str) -> None:
    model, batches = tiny_model("opt").to(dtype), tiny_batches("opt")
    masks = WANDA.prune(model, sparsity=level, batches=batches).masks
    for keep in masks.values():
        wanted = math.floor(Fraction(level) * keep.shape[1] + Fraction(1, 2))
        assert ((~keep).sum(dim=1) == wanted).all()


@pytest.mark.parametrize("num_rows", [1, 128])
def test_one_row_and_many(num_rows: int) -> None:
    found = WANDA.prune(tiny_model("opt"), sparsity="0.5", batches=tiny_batches("opt", 1, rows=num_rows))
    assert found.notes == {"num_calibration_rows": num_rows} and found.masks.sparsity == 0.5


def test_dense_needs_no_rows() -> None:
    found = WANDA.prune(tiny_model("opt"), sparsity="0.0")
    assert found.masks.num_pruned == 0 and found.masks.requested == 0 and found.weights is None


# --- on a card, run here on the host ----------------------------------------------------------------------------------


def _tied(family: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and norms of few values, and some inputs that are always zero: ties everywhere."""
    generator = torch.Generator().manual_seed(3)
    weights = {name: weight.detach().mul(4).round() for name, weight in prunable_weights(tiny_model(family)).items()}
    axis = architecture_of(list(weights)).input_axis
    norms = {n: torch.randint(0, 3, (w.shape[axis],), generator=generator).float() for n, w in weights.items()}
    return weights, norms


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize(("pattern", "level"), [
    (None, "0.3"), (None, "0.999"), (NM(2, 4), None), (NM(1, 4), None), (NM(4, 8), None), (NM(4, 4), None),
    (NM(3, 5, remainder="pad"), None), (NM(3, 5, remainder="skip"), None), (NM(5, 7, remainder="pad"), None),
], ids=str)  # fmt: skip
def test_the_way_on_a_card_gives_the_same_masks(family: str, pattern: Any, level: Any) -> None:
    weights, norms = _tied(family)
    pruner = WANDA if pattern is None else Pruner(ActivationNorm(), PerRow(), pattern)
    wanted, layout = pruner.resolve(level), architecture_of(list(weights))
    one, keeps = _on_card(pruner, wanted, layout)(weights, norms)
    other, _ = _by_ranking(pruner, wanted, layout)(weights, norms)
    for name, keep in other.items():
        assert torch.equal(one[name], keep) and torch.equal(keeps[name], keep), name
    assert one.digest() == other.digest() and one.num_ties == other.num_ties and repr(one) == repr(other)


def test_equal_scores_keep_the_earlier() -> None:
    keep, num_ties = keep_of_rows(torch.tensor([[1.0, 1, 1, 2], [1, 2, 3, 4]]), 2)
    assert keep.tolist() == [[True, False, False, True], [False, False, True, True]] and num_ties == 3


@pytest.mark.parametrize("n", [1, 8, 13])
def test_packing_is_that_of_masks(n: int) -> None:
    keep = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.5
    assert packed(keep).tolist() == Masks.from_tensors({"h.0.w": keep}).bits["h.0.w"].tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("pruner", [WANDA, WANDA_24], ids=["half", "2:4"])
def test_the_card_gives_what_the_host_gives(pruner: Pruner) -> None:
    model, batches = tiny_model("opt"), tiny_batches("opt")
    sparsity = None if pruner is WANDA_24 else "0.5"
    host = pruner.prune(model, sparsity=sparsity, batches=batches).masks
    card = pruner.prune(model.cuda(), sparsity=sparsity, batches=batches).masks
    assert card.sparsity == 0.5 and host.cosine(card) > 0.98


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_it_is_called() -> None:
    assert json.dumps(WANDA.describe()) == json.dumps(
        {"score": "activation_norm(inputs=pruned)", "allocation": PerRow().describe(), "pattern": "unstructured"}
    )


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: ActivationNorm("sparse"), r"score.inputs='sparse' is neither of pruned, dense"),
        (lambda: WANDA.prune(tiny_model("opt"), sparsity="0.5"), r"has no calibration rows: give a source"),
        (lambda: WANDA.prune(tiny_model("opt"), sparsity="0.5", batches=[]), r"has no calibration rows: give a source"),
        (
            lambda: Pruner(ActivationNorm(), Global()),
            r"allocation global compares weights of all blocks, .*: give pruner.score.inputs=dense",
        ),
        (lambda: WANDA.rank(prunable_weights(tiny_model("opt"))), r"score activation_norm.* has no statistics"),
        (
            lambda: DENSE.rank(prunable_weights(tiny_model("opt")), statistics={"h": torch.ones(3)}),
            r"weight 'decoder.layers.0.fc1.weight' has no input norms",
        ),
        (
            lambda: DENSE.rank({"layers.0.mlp.up_proj.weight": torch.ones(2, 3)}, statistics={
                "layers.0.mlp.up_proj.weight": torch.tensor([1.0, torch.nan, 1.0])
            }),
            r"has input norms of shape \(3,\) or not finite",
        ),
        (
            lambda: DENSE.rank({"layers.0.mlp.up_proj.weight": torch.ones(2, 3)}, statistics={
                "layers.0.mlp.up_proj.weight": torch.ones(2)
            }),
            r"of 3 inputs has input norms of shape \(2,\)",
        ),
    ],
)  # fmt: skip
def test_errors_name_the_remedy(run: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run()


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_model("opt")
    with torch.no_grad():
        prunable_weights(model)["decoder.layers.2.fc2.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'decoder.layers.2.fc2.weight' has 1 entries that are NaN"):
        WANDA.prune(model, sparsity="0.5", batches=tiny_batches("opt"))
