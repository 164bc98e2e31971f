"""N:M patterns keep the largest of each run, in every layout, width and dtype; a wrong pattern is refused."""

from fractions import Fraction
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
    Global,
    Magnitude,
    PerRow,
    Pruner,
    Random,
    Uniform,
    prunable_weights,
)
from essential_sparsity.pruning import histogram as histogram_module
from essential_sparsity.pruning.patterns import Pattern
from essential_sparsity.pruning.rows import keep_largest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PATTERNS = ["1:2", "2:4", "4:8", "1:4", "3:4", "7:8", "1:8", "16:32", "3:5", "1:1"]
LINEAR = Architecture.from_patterns(r"blocks\.(\d+)\.", ["*"])
CONV1D = Architecture.from_patterns(r"blocks\.(\d+)\.", ["*"], input_axis=0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut small weights into several pieces, so that both threads work."""
    monkeypatch.setattr(histogram_module, "CHUNK", 256)


def _weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, *, ties: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {f"blocks.{layer}.w.weight": torch.randn(shape, generator=generator) for layer in (10, 2)}
    return {name: ((w * 2).round() / 2 if ties else w).to(dtype) for name, w in made.items()}


def largest_of_each_run(scores: Tensor, pattern: NM, axis: int) -> tuple[Tensor, int]:
    """Keep the largest of each run, one run after the other; also count the ties that runs split."""
    rows = scores.double() if axis == 1 else scores.double().T
    keep, ties = torch.ones(rows.shape, dtype=torch.bool), 0
    for i, row in enumerate(rows.tolist()):
        for start in range(0, len(row), pattern.of):
            run = row[start : start + pattern.of]
            if len(run) < pattern.of and pattern.remainder == "skip":
                continue
            best_first = sorted(range(len(run)), key=lambda place: (-run[place], place))
            for place in best_first[pattern.keep :]:
                keep[i, start + place] = False
            if len(run) > pattern.keep and run[best_first[pattern.keep - 1]] == run[best_first[pattern.keep]]:
                ties += run.count(run[best_first[pattern.keep]])
    return (keep if axis == 1 else keep.T), ties


def _assert_runs(weights: dict[str, Tensor], pattern: NM, architecture: Architecture, axis: int) -> None:
    masks = Pruner(pattern=pattern)(weights, architecture=architecture)
    ties = 0
    for name, weight in weights.items():
        expected, found = largest_of_each_run(weight.double().abs(), pattern, axis)
        assert torch.equal(masks[name], expected), name
        ties += found
    assert masks.num_ties == ties


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_keeps_the_largest_of_each_run(text: str, dtype: torch.dtype, ties: bool) -> None:
    pattern = NM.parse(text)
    _assert_runs(_weights((9, 5 * pattern.of), dtype, ties=ties), pattern, LINEAR, 1)


@pytest.mark.parametrize("remainder", ["pad", "skip"])
@pytest.mark.parametrize("width", [1, 3, 7, 13, 33])
@pytest.mark.parametrize("text", ["2:4", "4:8", "3:5", "16:32"])
def test_ragged_widths_by_each_policy(text: str, width: int, remainder: str) -> None:
    keep, of = map(int, text.split(":"))
    for ties in (False, True):
        _assert_runs(_weights((11, width), ties=ties), NM(keep, of, remainder=remainder), LINEAR, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("axis", "architecture"), [("output", LINEAR), ("input", CONV1D)])
@pytest.mark.parametrize(("text", "remainder"), [("2:4", "pad"), ("3:5", "skip"), ("16:32", "pad")])
def test_runs_down_the_columns(text: str, remainder: str, axis: str, architecture: Any, dtype: torch.dtype) -> None:
    keep, of = map(int, text.split(":"))
    for shape in ((64, 9), (13, 40), (5, 7)):
        _assert_runs(_weights(shape, dtype, ties=True), NM(keep, of, axis, remainder), architecture, 0)


def test_outputs_of_a_transposed_matrix_are_its_rows() -> None:
    _assert_runs(_weights((6, 24)), NM(2, 4, axis="output"), CONV1D, 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.data())
def test_the_largest_of_any_codes(rows: int, length: int, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint16, np.uint32]))
    high = data.draw(st.sampled_from([1, 3, int(np.iinfo(dtype).max) // 2]))
    codes = np.random.default_rng(rows * length).integers(0, high, (rows, length), endpoint=True).astype(dtype)
    kept = data.draw(st.lists(st.integers(0, length), min_size=1, max_size=3))
    for k, (keep, _) in zip(kept, keep_largest(codes, kept)):
        order = np.argsort(-codes.astype(np.int64), axis=1, kind="stable")
        expected = np.zeros(codes.shape, dtype=bool)
        np.put_along_axis(expected, order[:, :k], True, axis=1)
        assert np.array_equal(keep, expected)


def test_a_fused_matrix_is_cut_along_its_inputs_like_any_other_and_runs_of_outputs_do_not_cross_its_kinds() -> None:
    weight = torch.randn(3 * 6, 8, generator=torch.Generator().manual_seed(1))
    names = {"attn.qkv": (18, 8), "attn.proj": (8, 6), "mlp.fc1": (8, 8), "mlp.fc2": (8, 8)}
    weights = {f"blocks.0.{rest}.weight": torch.randn(shape) for rest, shape in names.items()}
    weights["blocks.0.attn.qkv.weight"] = weight
    for pattern, axis in ((NM(2, 4, remainder="pad"), 1), (NM(2, 4, "output", "pad"), 0)):
        masks = Pruner(pattern=pattern)(weights)
        expected = torch.cat([largest_of_each_run(part.abs(), pattern, axis)[0] for part in weight.chunk(3)])
        assert torch.equal(masks["blocks.0.attn.qkv.weight"], expected)


def test_any_score_goes_with_a_pattern() -> None:
    weights = _weights((8, 16))
    score = Random(3)
    masks = Pruner(score, pattern=NM(2, 4))(weights)
    for name in weights:
        drawn = torch.from_numpy(score.bits(name, weights[name], 0, 128, "uint31").astype(np.int64)).view(8, 16)
        assert torch.equal(masks[name], largest_of_each_run(drawn, NM(2, 4), 1)[0])
    assert Pruner(score, Uniform(), NM(2, 4))(weights).digest() == masks.digest()


def test_gpt2_is_cut_along_its_inputs() -> None:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=4))
    weights = prunable_weights(model)
    masks = Pruner(pattern=NM(1, 4))(weights)
    for name, weight in weights.items():
        assert torch.equal(masks[name], largest_of_each_run(weight.detach().abs(), NM(1, 4), 0)[0])


# --- weights that change ---


def test_a_pattern_is_cut_when_it_is_ranked_and_stays_what_it_was() -> None:
    weights = _weights((8, 16), ties=True)
    ranking = Pruner(pattern=NM(2, 4)).rank(weights)
    expected = ranking.masks(None).digest()
    ranking.apply_(weights, None)
    assert ranking.masks(None).digest() == expected == Pruner(pattern=NM(2, 4))(weights).digest()
    assert ranking.num_ties(None) > 0


def test_thresholds_are_the_smallest_kept_magnitudes() -> None:
    weights = _weights((8, 16))
    ranking = Pruner(pattern=NM(2, 4)).rank(weights)
    masks, (found,) = ranking.masks(None), ranking.thresholds([None])
    assert found == {name: float(weights[name].abs()[masks[name]].min()) for name in masks}
    with pytest.raises(ValueError, match="cuts run by run: there is no one threshold"):
        list(ranking.cuts(None))


# --- sparsity, spelling, errors ---


def test_sparsity_follows_from_the_pattern() -> None:
    pruner, weights = Pruner(pattern=NM(1, 4)), _weights((8, 16))
    masks = pruner(weights)
    assert masks.requested == Fraction(3, 4) == pruner.resolve(None) == pruner.resolve("0.75") == pruner.resolve(0.75)
    assert masks.sparsity == 0.75
    assert pruner(weights, sparsity=0.0).num_pruned == 0
    with pytest.raises(
        ValueError, match=r"sparsity=0.5 contradicts pattern 1:4, which implies 0.75: give sparsity=null"
    ):
        pruner(weights, sparsity=0.5)


def test_a_pattern_may_be_spelt_in_three_ways() -> None:
    spelt: list[Any] = ["2:4", {"keep": 2, "of": 4}, NM(2, 4), " 2 : 4 "]
    assert {Pruner(pattern=pattern) for pattern in spelt} == {Pruner(pattern=NM())}
    assert NM(2, 4).describe() == "2:4"
    assert NM(2, 4, "output", "pad").describe() == "2:4, output axis, remainder pad"
    described = Pruner(Magnitude(), Global(), NM(2, 4)).describe()
    assert described == {"score": "magnitude", "allocation": "by the pattern alone", "pattern": "2:4"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (124, r"pattern=124 is a number, as YAML reads 2:4 in base 60: write pattern='\"2:4\"', or {keep: 2, of: 4}"),
        (7, "pattern=7 is no pattern"),
        (True, "pattern=True is no pattern"),
        (None, "pattern=None is no pattern"),
        ("two of four", "pattern='two of four' is no pattern: give keep:of"),
        ("4:2", "pattern 4:2 keeps 4 of each 2 weights: give keep:of with 1 ≤ keep ≤ of"),
        ("0:4", "pattern 0:4 keeps 0 of each 4"),
        ({"keep": 0, "of": 0}, "pattern 0:0 keeps 0"),
        ({"keep": -1, "of": 4}, "pattern -1:4 keeps -1"),
        ({"keep": 2.0, "of": 4}, "has keep=2.0: give a whole number"),
        ({"keep": 2, "of": 4, "axis": "inputs"}, "pattern.axis='inputs' is unknown: did you mean 'input'"),
        ({"keep": 2, "of": 4, "remainder": "padded"}, "pattern.remainder='padded' is unknown: did you mean 'pad'"),
    ],
)
def test_a_wrong_pattern_is_refused_in_one_line(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Pattern.read(value)
    assert "\n" not in str(caught.value)


def test_a_width_that_the_pattern_does_not_divide_is_refused_by_name() -> None:
    weights = _weights((8, 16)) | {"blocks.3.w.weight": torch.randn(8, 6)}
    with pytest.raises(
        ValueError, match=r"'blocks.3.w.weight' has 6 inputs in a row, which pattern 2:4 .*remainder: pad"
    ):
        Pruner(pattern=NM(2, 4)).rank(weights)


@pytest.mark.parametrize("pruner", [Pruner(pattern=NM()), Pruner(Random(), pattern=NM()), Pruner(allocation=PerRow())])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(4, 8, dtype=torch.int8), "'blocks.5.w.weight' is int8"),
        (torch.zeros(4, 8, dtype=torch.float64), "'blocks.5.w.weight' is float64"),
        (torch.empty(4, 8, device="meta"), "'blocks.5.w.weight' is on the meta device"),
    ],
)
def test_weights_without_magnitudes_are_refused_by_name(pruner: Pruner, bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pruner.rank(_weights((4, 8)) | {"blocks.5.w.weight": bad})


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_are_refused_by_name(dtype: torch.dtype) -> None:
    weights = _weights((4, 8), dtype)
    weights["blocks.10.w.weight"][1, 2] = float("-inf")
    for pruner in (Pruner(pattern=NM(2, 4)), Pruner(allocation=PerRow())):
        with pytest.raises(ValueError, match=r"'blocks.10.w.weight' has 1 entries that are NaN or infinite"):
            pruner(weights, sparsity=0.5)


def test_tied_weights_are_pruned_once() -> None:
    from transformers import GPT2Config, GPT2Model

    model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10, n_positions=4))
    names = list(prunable_weights(model))
    model.get_submodule("h.1.mlp.c_fc").weight = model.get_parameter("h.0.mlp.c_fc.weight")
    masks = Pruner(pattern=NM(2, 4)).prune(model).masks
    assert set(names) - set(masks) == {"h.1.mlp.c_fc.weight"}
    assert masks.sparsity == 0.5


@pytest.mark.real
def test_a_real_model_has_half_of_each_four(es_models: Any, monkeypatch: Any) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(histogram_module, "CHUNK", 2**18)
    model = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2", dtype=torch.float32)
    masks = Pruner(pattern=NM(2, 4)).prune(model).masks
    assert masks.sparsity == 0.5
    for name, weight in prunable_weights(model).items():
        keep, groups = masks[name].view(-1, 4), weight.detach().abs().view(-1, 4)
        assert (keep.sum(dim=1) == 2).all()
        assert (groups.masked_fill(~keep, torch.inf).amin(1) >= groups.masked_fill(keep, 0).amax(1)).all()
