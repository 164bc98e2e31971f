"""The walk: each matrix sees exactly what it would see in the whole model, and the model is left as it was."""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from calibration_oracle import FAMILIES, inputs_of, single_rows, tiny_batches, tiny_model
from torch import Tensor, nn

from essential_sparsity.pruning import Architecture, layer_of, prunable_weights
from essential_sparsity.pruning.activations import Hessians, InputNorms, blocks_of, gather
from essential_sparsity.pruning.calibration import walk


class Wrapper(nn.Module):
    """Stands for a LightningModule: holds a model and has no forward of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def _zeroed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stand-in for pruning: every third weight goes."""
    places = {name: torch.arange(weight.numel()).view(weight.shape) for name, weight in weights.items()}
    return {name: weight.masked_fill(places[name] % 3 == 0, 0) for name, weight in weights.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_norms_equal_row_by_row(family: str) -> None:
    model, batches = tiny_model(family), tiny_batches(family)
    found = gather(model, batches, InputNorms)
    assert list(found) == list(prunable_weights(model))
    for name, weight in prunable_weights(model).items():
        inputs = inputs_of(model, weight, single_rows(batches))
        torch.testing.assert_close(found[name], inputs.norm(dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_walk_gives_what_goes_in_behind_pruned_blocks(family: str) -> None:
    model, batches = tiny_model(family), tiny_batches(family)
    before, training = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    found: dict[str, Tensor] = {}

    def choose(block: dict[str, nn.Parameter], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        found.update(statistics)
        return _zeroed(block)

    walk(model, batches, Hessians, choose)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert training == [module.training for module in model.modules()]
    assert list(found) == list(prunable_weights(model))

    pruned = copy.deepcopy(model)
    weights = prunable_weights(pruned)
    for layer in range(3):
        own = {name: weight for name, weight in weights.items() if layer_of(name) == layer}
        for name, weight in own.items():
            inputs = inputs_of(pruned, weight, single_rows(batches))
            torch.testing.assert_close(found[name], inputs.T @ inputs, rtol=2e-4, atol=2e-4)
        with torch.no_grad():
            for name, values in _zeroed(own).items():
                own[name].copy_(values)


def test_walk_and_dense_model_agree_where_nothing_is_pruned() -> None:
    model, batches = tiny_model("opt"), tiny_batches("opt")
    dense, walked = gather(model, batches, InputNorms), {}

    def choose(block: dict[str, nn.Parameter], statistics: dict[str, Tensor]) -> dict[str, Tensor]:
        walked.update(statistics)
        return {name: weight.detach() for name, weight in block.items()}

    walk(model, batches, InputNorms, choose)
    for name, norms in dense.items():
        torch.testing.assert_close(walked[name], norms, rtol=1e-5, atol=1e-6)


def test_shared_inputs_are_gathered_once() -> None:
    found = gather(tiny_model("llama"), tiny_batches("llama"), InputNorms)
    assert len({id(norms) for norms in found.values()}) == 3 * 4  # of 3 · 7 matrices
    block = "layers.0."
    q, k = (found[f"{block}self_attn.{part}.weight"] for part in ("q_proj", "k_proj"))
    assert q is k and found[f"{block}mlp.gate_proj.weight"] is found[f"{block}mlp.up_proj.weight"]


def test_only_the_first_batch_runs_through_the_whole_model() -> None:
    model, ran = tiny_model("opt"), []
    model.model.decoder.final_layer_norm.register_forward_hook(lambda *_: ran.append(1))
    walk(model, tiny_batches("opt"), InputNorms, lambda block, _: _zeroed(block))
    assert len(ran) == 1


def test_a_wrapped_model_and_a_forward_of_its_own() -> None:
    model, batches = tiny_model("timm_vit"), tiny_batches("timm_vit")
    images = [{"images": batch["x"], "label": torch.zeros(4, dtype=torch.long)} for batch in batches]
    wrapped = Wrapper(model)
    found = gather(wrapped, images, InputNorms, forward=lambda batch: wrapped.model(batch["images"]))
    assert all(torch.equal(found[name], norms) for name, norms in gather(model, batches, InputNorms).items())


def test_half_precision_is_summed_in_fp32() -> None:
    model, batches = tiny_model("opt").bfloat16(), tiny_batches("opt")
    found = gather(model, batches, Hessians)
    name, weight = next(iter(prunable_weights(model).items()))
    inputs = inputs_of(model, weight, single_rows(batches)).double()
    assert found[name].dtype == torch.float32
    torch.testing.assert_close(found[name].double(), inputs.T @ inputs, rtol=1e-2, atol=5e-2)


def test_hessian_tiles_fill_both_triangles() -> None:
    inputs = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    sums = Hessians(300, inputs.device)
    for part in inputs.split(20):
        sums.add(part)
    torch.testing.assert_close(sums.value(), inputs.T @ inputs, rtol=1e-5, atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------------------


def _walk(model: nn.Module, batches: Any, **options: Any) -> None:
    walk(model, batches, InputNorms, lambda block, _: _zeroed(block), **options)


@pytest.mark.parametrize("run", [_walk, lambda model, batches: gather(model, batches, InputNorms)])
def test_no_rows_are_refused(run: Any) -> None:
    with pytest.raises(ValueError, match=r"holds no calibration row: give some, e.g. calibration.num_rows=128"):
        run(tiny_model("opt"), [])


def test_inputs_that_are_not_finite_are_refused_by_name() -> None:
    model = tiny_model("opt")
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.bias[0] = torch.inf
    training = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=r"'decoder.layers.1.fc2.weight' reads inputs that are NaN, infinite"):
        _walk(model, tiny_batches("opt"))
    assert training == [module.training for module in model.modules()]


class Chain(nn.Module):
    """Blocks whose inputs are changed between them, or one that runs twice."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x if self.twice else x + number)
            if self.twice:
                x = layer(x)
        return x


@pytest.mark.parametrize("twice", [False, True])
def test_a_model_that_is_no_chain_of_blocks_is_refused(twice: bool) -> None:
    architecture = Architecture.from_patterns(r"layers\.(\d+)\.", ["0"])
    with pytest.raises(ValueError, match=r"block 'layers.\d' does not simply take what the block before it gives"):
        _walk(Chain(twice=twice), [{"x": torch.ones(2, 4)}], architecture=architecture)


def test_a_weight_that_two_layers_share_is_refused() -> None:
    model = tiny_model("opt")
    model.model.decoder.layers[2].fc1.weight = model.model.decoder.layers[1].fc1.weight
    with pytest.raises(ValueError, match=r"'decoder.layers.1.fc1.weight' is shared by 2 layers"):
        blocks_of(model)


def test_padding_that_no_matrix_sees_is_refused() -> None:
    model = tiny_model("timm_vit")
    batch = {**tiny_batches("timm_vit")[0], "attention_mask": torch.tensor([[1, 0]] * 4)}
    with pytest.raises(ValueError, match=r"reads 68 tokens of a batch whose attention_mask has 8"):
        gather(model, [batch], InputNorms, forward=lambda batch: model(batch["x"]))
