"""2:4 on a card is used where it wins, refused where it cannot be, and changes no result."""

import pytest
import torch
from torch import nn

from essential_sparsity.pruning import NM, Pruner
from essential_sparsity.pruning.semi_structured import compressed, is_two_four, linear_layers, speed_up


def two_four(outputs, inputs, dtype=torch.bfloat16):
    """Make a linear layer that keeps the two largest of each four weights."""
    layer = nn.Linear(inputs, outputs).to(dtype)
    weights = {"layers.0.weight": layer.weight}
    Pruner(pattern=NM(2, 4))(weights).apply_(weights)
    return layer


def test_the_pattern_is_seen_along_rows():
    assert is_two_four(torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0]]))
    assert not is_two_four(torch.tensor([[1.0, 3, 2, 0], [0, 0, 0, 0]]))
    assert not is_two_four(torch.ones(4, 2)) and not is_two_four(torch.zeros(8))
    assert is_two_four(two_four(32, 64).weight)


def test_only_the_shapes_that_win_are_converted():
    layers = [two_four(64, 128), two_four(64, 128), two_four(128, 64), nn.Linear(64, 64).bfloat16()]
    model, before = nn.Sequential(*layers), [layer.weight.clone() for layer in layers]

    def clock(weight, num_tokens):
        assert num_tokens == 77
        return (2e-3, 1e-3) if weight.shape == (64, 128) else (1e-3, 0.99e-3)

    rows = speed_up(model, num_tokens=77, clock=clock, convert=lambda weight: weight + 1)
    assert [(row.outputs, row.inputs, row.num_layers, row.converted) for row in rows] == [
        (64, 128, 2, True), (128, 64, 1, False)
    ]  # fmt: skip
    assert rows[0].ratio == 2 and rows[0].as_dict()["dtype"] == "bfloat16"
    changed = [not torch.equal(layer.weight, old) for layer, old in zip(layers, before)]
    assert changed == [True, True, False, False]
    assert not layers[0].weight.requires_grad and layers[2].weight.requires_grad


def test_what_cannot_be_sped_up_is_told():
    with pytest.raises(ValueError, match="none of 1 linear layers is in half precision: load the model in bfloat16"):
        linear_layers(nn.Sequential(two_four(64, 64, torch.float32)))
    with pytest.raises(
        ValueError, match="none of 2 linear layers keeps two of each four weights: prune with pruner=nm"
    ):
        linear_layers(nn.Sequential(nn.Linear(64, 64).half(), nn.Linear(33, 64).half()))
    with pytest.raises(ValueError, match=r"none of 2 2:4 layers has a shape .*\(the first: 33 × 64\): .* units of 32"):
        linear_layers(nn.Sequential(nn.Linear(64, 64).half(), two_four(33, 64), two_four(64, 32)))
    assert len(linear_layers(nn.Sequential(two_four(33, 64), two_four(64, 64)))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_machine_without_a_card_is_told():
    with pytest.raises(ValueError, match="need a CUDA card and there is none"):
        speed_up(nn.Sequential(two_four(64, 64)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_a_converted_model_computes_the_same():
    model = nn.Sequential(two_four(4096, 1024), nn.ReLU(), two_four(1024, 4096)).cuda().eval()
    tokens = torch.randn(2048, 1024, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        expected = model(tokens)
        rows = speed_up(model, num_tokens=2048)
        assert torch.allclose(model(tokens), expected, atol=0.05, rtol=0.05)
    assert [(row.outputs, row.inputs) for row in rows] == [(4096, 1024), (1024, 4096)]
    assert all(row.converted == (row.dense > 1.02 * row.sparse) for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card")
def test_every_2_4_matrix_that_a_kernel_takes_computes_the_same_on_the_card():
    for outputs, inputs in ((32, 64), (96, 192), (768, 3072)):
        layer = two_four(outputs, inputs).cuda()
        tokens = torch.randn(64, inputs, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            sparse = nn.functional.linear(tokens, compressed(layer.weight.detach()), layer.bias)
            assert torch.allclose(sparse, layer(tokens), atol=0.05, rtol=0.05)
