"""SparseGPT chooses and corrects as the published algorithm in float64, exactly as many weights as asked for."""

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_oracle import (
    FAMILIES,
    inputs_of,
    pruned_in_turn,
    reconstruction_error,
    single_rows,
    sparsegpt_matrix,
    tiny_batches,
    tiny_model,
)
from torch import Tensor

from essential_sparsity.pruning import architecture_of, prunable_weights, sparsegpt
from essential_sparsity.pruning.activations import Hessians
from essential_sparsity.pruning.patterns import NM, Unstructured
from essential_sparsity.pruning.sparsegpt import (
    InverseFactor,
    SparseGPT,
    _errors_at_once,
    _errors_in_turn,
    _in_format,
    _kth_by_bins,
    compress,
    keep_largest_,
    kth_smallest,
)

PATTERNS: dict[str, Any] = {
    "0.5": (Unstructured(), "0.5", {"sparsity": 0.5}),
    "0.3": (Unstructured(), "0.3", {"sparsity": 0.3}),
    "2:4": (NM(2, 4), None, {"group": (2, 4)}),
    "1:4": (NM(1, 4), None, {"group": (1, 4)}),
    "4:8": (NM(4, 8), None, {"group": (4, 8)}),
}


def _matrix(outputs: int, inputs: int, tokens: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a weight [outputs, inputs] and correlated inputs [tokens, inputs] of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    scale = torch.rand(inputs, generator=generator) + 0.1
    return weight, torch.randn(tokens, inputs, generator=generator) @ mix * scale


def _compress(weight: Tensor, inputs: Tensor, pattern: Any, sparsity: Any, block_size: int = 128) -> tuple:
    factor = InverseFactor.of(inputs.T @ inputs, 0.01)
    wanted = pattern.resolve(None if sparsity is None else Fraction(sparsity))
    found = compress([weight.T.contiguous()], factor, sparsity=wanted, pattern=pattern, block_size=block_size)
    return tuple(part.T for part in found[0])


@pytest.mark.parametrize("named", PATTERNS)
@pytest.mark.parametrize(("inputs", "block_size"), [(192, 128), (40, 128), (96, 32)])
def test_one_matrix_equals_the_published_algorithm_in_float64(named: str, inputs: int, block_size: int) -> None:
    pattern, sparsity, plain = PATTERNS[named]
    weight, seen = _matrix(24, inputs, 600)
    values, keep = _compress(weight, seen, pattern, sparsity, block_size)
    wanted, wanted_keep = sparsegpt_matrix(weight, seen, block_size=block_size, **plain)
    assert (keep != wanted_keep).float().mean() < 0.002
    error, least = (reconstruction_error(weight, one, seen) for one in (values, wanted))
    assert error == pytest.approx(least, rel=0.01)
    assert not values[~keep].any()
    plainly_cut = reconstruction_error(weight, weight * keep, seen)
    assert error < 0.95 * plainly_cut  # what the correction is for


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["0.5", "2:4"])
def test_a_whole_model_equals_the_published_algorithm_row_by_row(family: str, named: str) -> None:
    pattern, sparsity, plain = PATTERNS[named]
    model, batches = tiny_model(family), tiny_batches(family, rows=6)
    found = SparseGPT(pattern).prune(model, sparsity=sparsity, batches=batches)
    weights, keeps = pruned_in_turn(model, batches, lambda _, weight, seen: sparsegpt_matrix(weight, seen, **plain))
    assert found.weights is not None and list(found.weights) == list(weights) == list(found.masks)
    for name, keep in found.masks.items():
        assert torch.equal(keep, keeps[name]), name
        torch.testing.assert_close(found.weights[name], weights[name], rtol=1e-2, atol=1e-3)
        assert not found.weights[name][~keep].any()
        assert not torch.signbit(found.weights[name][~keep]).any()


def test_correction_serves_the_real_model(es_models: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2")
    generator = torch.Generator().manual_seed(0)
    batch = {"input_ids": torch.randint(1000, 20000, (8, 64), generator=generator)}
    found = SparseGPT().prune(model, sparsity="0.5", batches=[batch])
    assert found.weights is not None and found.notes == {"num_damped": 0, "num_calibration_rows": 8}
    assert found.masks.sparsity == 0.5
    name = "encoder.layer.0.intermediate.dense.weight"
    weights = prunable_weights(model)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for part, weight in prunable_weights(pruned).items():
            if part.startswith("encoder.layer.0.attention"):
                weight.copy_(found.weights[part])
    seen = inputs_of(model, weights[name], [batch])  # the block's own inputs are those of the dense model
    wanted, keep = sparsegpt_matrix(weights[name].detach(), seen, sparsity=0.5)
    assert (found.masks[name] != keep).float().mean() < 0.002
    error, least = (reconstruction_error(weights[name].detach(), one, seen) for one in (found.weights[name], wanted))
    assert error == pytest.approx(least, rel=0.01)


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["0.1", "0.29", "0.5", "0.77", "0.99"])
def test_counts_are_exact_in_every_block_of_columns(level: str) -> None:
    weight, seen = _matrix(13, 100, 300)
    weight[:, 3:50] = weight[:, 3:50].round()  # ties at zero
    _, keep = _compress(weight, seen, Unstructured(), level, block_size=32)
    for block in keep.split(32, dim=1):
        assert int((~block).sum()) == int(Fraction(level) * block.numel() + Fraction(1, 2))


def test_matrices_that_share_inputs_are_pruned_each_by_itself() -> None:
    weight, seen = _matrix(24, 64, 300)
    factor = InverseFactor.of(seen.T @ seen, 0.01)
    options = {"sparsity": Fraction("0.4"), "pattern": Unstructured(), "block_size": 32}
    apart = [compress([part.T], factor, **options)[0] for part in (weight[:10] * 3, weight[10:])]
    for one, other in zip(compress([weight[:10].T * 3, weight[10:].T], factor, **options), apart, strict=True):
        assert torch.equal(one[1], other[1])
        torch.testing.assert_close(one[0], other[0])


@pytest.mark.parametrize(("remainder", "kept"), [("pad", 2), ("skip", 3)])
def test_a_short_last_group(remainder: str, kept: int) -> None:
    weight, seen = _matrix(6, 39, 200)
    _, keep = _compress(weight, seen, NM(2, 4, remainder=remainder), None)
    assert (keep[:, :36].reshape(6, 9, 4).sum(2) == 2).all()
    assert (keep[:, 36:].sum(1) == kept).all()


def test_equal_scores_keep_the_earlier() -> None:
    keep = torch.ones(2, 4, dtype=torch.bool)
    keep_largest_(keep, torch.ones(2, 4), 3)  # [D, R]: outputs 0 … 3 of two inputs each
    assert keep.T.tolist() == [[True, True], [True, True], [True, False], [False, False]]


@pytest.mark.parametrize("k", [1, 7, 100, 399, 400])
def test_both_ways_to_select_agree(k: int) -> None:
    scores = torch.randn(20, 20, generator=torch.Generator().manual_seed(5)).abs()
    scores[3:8] = 0.25
    assert torch.equal(_kth_by_bins(scores, k), scores.flatten().sort().values[k - 1])
    assert torch.equal(kth_smallest(scores, k), _kth_by_bins(scores, k))


def test_both_ways_to_solve_agree() -> None:
    weight, seen = _matrix(50, 16, 100)
    upper = InverseFactor.of(seen.T @ seen, 0.01).upper
    keep = torch.rand(16, 50, generator=torch.Generator().manual_seed(2)) < 0.5
    one, other = (solve(weight.T.contiguous(), keep, upper) for solve in (_errors_in_turn, _errors_at_once))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# --- neutral, harmless ------------------------------------------------------------------------------------------------


def test_dense_changes_nothing_and_needs_no_rows() -> None:
    model = tiny_model("opt")
    found = SparseGPT().prune(model, sparsity="0.0")
    assert found.weights is None and found.masks.sparsity == 0 and found.masks.requested == 0


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    found = SparseGPT().prune(model, sparsity="0.5", batches=tiny_batches("bert"))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    found.masks.check(prunable_weights(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_come_back_in_their_format(dtype: torch.dtype) -> None:
    model = tiny_model("opt").to(dtype)
    found = SparseGPT().prune(model, sparsity="0.5", batches=tiny_batches("opt"))
    assert found.weights is not None and {weight.dtype for weight in found.weights.values()} == {dtype}
    assert found.masks.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("num_rows", [1, 128])
def test_one_row_and_many(num_rows: int) -> None:
    model = tiny_model("opt")
    batch = tiny_batches("opt", 1, rows=num_rows)
    found = SparseGPT().prune(model, sparsity="0.5", batches=batch)
    assert found.notes["num_calibration_rows"] == num_rows
    assert found.weights is not None and all(torch.isfinite(weight).all() for weight in found.weights.values())


def test_a_singular_hessian_is_dampened_more_and_counted() -> None:
    model, batch = tiny_model("opt"), single_rows(tiny_batches("opt", 1))[:1]
    batch[0]["input_ids"] = batch[0]["input_ids"][:, :2]
    batch[0]["attention_mask"] = batch[0]["attention_mask"][:, :2]  # two tokens for 24 inputs
    found = SparseGPT(dampening=1e-12).prune(model, sparsity="0.5", batches=batch)
    assert 0 < found.notes["num_damped"] <= len(found.masks)
    assert found.weights is not None and all(torch.isfinite(weight).all() for weight in found.weights.values())
    assert SparseGPT().prune(model, sparsity="0.5", batches=tiny_batches("opt")).notes["num_damped"] == 0


def test_inputs_that_are_always_zero_go_first() -> None:
    weight, seen = _matrix(10, 20, 100)
    seen[:, [3, 17]] = 0
    values, keep = _compress(weight, seen, Unstructured(), "0.1")
    assert not keep[:, [3, 17]].any() and int((~keep).sum()) == 20
    assert torch.equal(values[keep], weight[keep])  # they are made up for by nothing
    values, keep = _compress(weight, torch.zeros(5, 20), Unstructured(), "0.5")
    assert torch.equal(values, weight * keep) and int((~keep).sum()) == 100


@pytest.mark.parametrize("n", [1, 7, 64, 100])
def test_triangles_are_inverted_by_halves(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsegpt, "SOLVED", 8)
    _, seen = _matrix(1, n, 3 * n)
    lower = torch.linalg.cholesky(seen.T.double() @ seen.double())
    inverse = sparsegpt.inverse_of_lower(lower)
    assert not inverse.triu(1).any()
    torch.testing.assert_close(inverse, torch.linalg.inv(lower))


def test_factor_is_that_of_the_inverse() -> None:
    _, seen = _matrix(1, 30, 100)
    hessian = (seen.T @ seen).double()
    upper = InverseFactor.of(hessian.clone(), 0.01).upper
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(30, dtype=torch.float64)
    torch.testing.assert_close(upper, torch.linalg.cholesky(torch.linalg.inv(damped), upper=True))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparseGPT(dampening=0.0), r"pruner.dampening=0.0 lies outside \(0, 1\)"),
        (lambda: SparseGPT(block_size=0), r"pruner.block_size=0 is no number of columns"),
        (lambda: SparseGPT(NM(2, 4, axis="output")), r"axis=output runs over outputs"),
        (lambda: SparseGPT(NM(2, 4)).resolve("0.3"), r"sparsity=0.3 contradicts pattern 2:4"),
        (lambda: SparseGPT().prune(tiny_model("opt"), sparsity="0.5"), r"sparsegpt has no calibration rows: give a"),
        (lambda: SparseGPT().prune(tiny_model("opt"), sparsity="0.5", batches=[]), r"holds no calibration row"),
        (
            lambda: SparseGPT(NM(2, 5)).prune(tiny_model("opt"), batches=tiny_batches("opt")),
            r"has 24 inputs in a row, which pattern 2:5 does not divide",
        ),
        (
            lambda: InverseFactor.of(torch.tensor([[1.0, torch.nan], [torch.nan, 1.0]]), 0.01, "fc1"),
            r"weight 'fc1' has a Hessian that no dampening",
        ),
    ],
)
def test_errors_name_the_remedy(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_correction_that_half_precision_cannot_hold_is_refused() -> None:
    assert _in_format("fc1", torch.tensor([65504.0]), torch.float16).dtype == torch.float16
    with pytest.raises(ValueError, match=r"weight 'fc1' does not fit into torch.float16 after its correction"):
        _in_format("fc1", torch.tensor([1.0, 1e5]), torch.float16)


def test_what_it_is_called() -> None:
    assert SparseGPT(NM(2, 4)).describe() == {
        "score": "sparsegpt(dampening=0.01)",
        "allocation": "per 128 columns",
        "pattern": NM(2, 4).describe(),
    }
    assert architecture_of(list(prunable_weights(tiny_model("gpt2")))).input_axis == 0


# --- on a card --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
@pytest.mark.parametrize("named", ["0.5", "2:4"])
def test_the_card_gives_what_the_host_gives(named: str) -> None:
    pattern, sparsity, _ = PATTERNS[named]
    weight, seen = _matrix(96, 192, 600)
    host = _compress(weight, seen, pattern, sparsity)
    card = [part.cpu() for part in _compress(weight.cuda(), seen.cuda(), pattern, sparsity)]
    assert (host[1] != card[1]).float().mean() < 0.005
    errors = [reconstruction_error(weight, values, seen) for values, _ in (host, card)]
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_half_precision_products_are_exact_on_a_card() -> None:
    inputs = torch.randn(500, 300, generator=torch.Generator().manual_seed(0)).bfloat16().cuda()
    sums = Hessians(300, inputs.device)
    sums.add(inputs)
    torch.testing.assert_close(sums.value(), inputs.T.float() @ inputs.float(), rtol=1e-4, atol=1e-3)
