"""Parts of a model pruned alone, and pruning after training: counts, parts by layer and kind, heads that stay."""

import numpy as np
import pytest
import torch

from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.pruning import AfterTraining, Explicit, Part, Pruner, TransferredLottery, prunable_weights
from essential_sparsity.pruning.architecture import architecture_of, kind_of, layer_of


@pytest.fixture(scope="module")
def weights():
    return prunable_weights(TinyLanguageBackbone().build(num_labels=2, seed=0))


def pruned_by(weights, of, share):
    masks = Pruner(allocation=Part(of, share))(weights, architecture=architecture_of(list(weights)))
    return {name: float((~masks[name]).float().mean()) for name in masks}


def test_a_layer_alone_loses_its_share_and_the_rest_nothing(weights):
    found = pruned_by(weights, "layer:1", 0.25)
    assert {name: round(share, 4) for name, share in found.items()} == {
        name: 0.25 if layer_of(name) == 1 else 0.0 for name in weights
    }


def test_a_kind_alone_loses_its_share_in_every_layer(weights):
    found = pruned_by(weights, "kind:mlp_*", 0.5)
    assert all((share == 0.5) == kind_of(name).startswith("mlp") for name, share in found.items())


def test_the_smallest_of_the_part_go(weights):
    name = next(name for name in weights if layer_of(name) == 0)
    masks = Pruner(allocation=Part("layer:0", 0.3))(weights, architecture=architecture_of(list(weights)))
    magnitudes, keep = weights[name].detach().abs(), masks[name]
    assert magnitudes[~keep].max() <= magnitudes[keep].min()


def test_sparsity_follows_from_the_part(weights):
    pruner = Pruner(allocation=Part("layer:0", 0.5))
    assert pruner.resolve(None) is None and pruner.resolve(0.0) == 0
    masks = pruner(weights, architecture=architecture_of(list(weights)))
    size = sum(w.numel() for n, w in weights.items() if layer_of(n) == 0) / sum(w.numel() for w in weights.values())
    assert masks.sparsity == pytest.approx(0.5 * size)
    with pytest.raises(ValueError, match=r"give sparsity=null, or 0\.0 for dense"):
        pruner.resolve(0.3)


def test_a_layer_that_is_not_there_is_told_with_those_that_are(weights):
    with pytest.raises(ValueError, match=r"'layer:7' matches no prunable weight: the layers are layer:0 … layer:1"):
        pruned_by(weights, "layer:7", 0.5)


def test_explicit_shares_take_layers(weights):
    masks = Pruner(allocation=Explicit({"layer:0": 0.5}))(weights, architecture=architecture_of(list(weights)))
    assert {layer_of(name) for name in masks if not masks[name].all()} == {0}


@pytest.mark.parametrize("share", [1.5, -0.1, None])
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(ValueError):
        Part("layer:0", share)


def test_pruning_after_training_has_one_dense_run_of_its_seed_before_it():
    pruner = AfterTraining(further=0.5)
    assert pruner.rounds(0.3) == [0] and pruner.rounds(0) == [] and pruner.seed_of_rounds(7) == 7
    assert (pruner.num_trainings(0.3), pruner.num_trainings(0), AfterTraining().num_trainings(0.3)) == (0.5, 1, 0)


@pytest.mark.parametrize("further", [-1, "much", True])
def test_further_training_is_a_share(further):
    with pytest.raises(ValueError, match="is no share of the training before"):
        AfterTraining(further=further)


def test_a_ticket_from_elsewhere_starts_from_the_pre_trained_weights():
    with pytest.raises(ValueError, match="starts from the pre-trained weights, leave it 0"):
        TransferredLottery(rewind=10, found_on="sst2")
    assert TransferredLottery(found_on="sst2").describe()["score"].endswith(", on sst2")


def test_tiles_average_to_the_share_of_their_matrix(weights):
    from essential_sparsity.streaming.places import measure_places

    plain = {name: weight.detach() for name, weight in weights.items()}
    rows = measure_places(plain, 0.215)
    num, gone = (sum(row[key] for row in rows) for key in ("num", "num_pruned"))
    assert gone == round(0.215 * num) and len(rows) == len(weights)
    for row in rows:
        assert len(row["tiles"]) == row["height"] * row["width"] <= 48 * 48
    name = next(iter(weights))
    masks = Pruner()(plain, sparsity=0.215)
    tiles = np.asarray(rows[0]["tiles"]).reshape(rows[0]["height"], -1)
    expected = torch.nn.functional.adaptive_avg_pool2d((~masks[name]).float()[None, None], tiles.shape)[0, 0]
    assert np.allclose(tiles, expected.numpy())
