"""A score of one's own is one method: it is ranked to the weight, in any pruner, and refused where it is no score."""

from dataclasses import dataclass

import pytest
import torch
from tests.pruning.pruning_oracle import sorted_masks

from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.pruning import Formula, Pruner, Uniform, prunable_weights
from essential_sparsity.streaming.prune import prune_checkpoint


@dataclass(frozen=True)
class FromMean(Formula):
    """Keep what lies far from its row's mean."""

    power: int = 1

    def scores(self, name, weight):
        return (weight - weight.mean(1, keepdim=True)).abs() ** self.power


class Given(Formula):
    def __init__(self, give):
        self.give = give

    def scores(self, name, weight):
        return self.give(weight)


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(6, 5, generator=generator) for name in ("layer.2.weight", "layer.10.weight")}


def test_the_masks_of_a_formula_equal_sorting_its_scores(weights):
    scores = {name: FromMean().scores(name, weight) for name, weight in weights.items()}
    masks = Pruner(FromMean())(weights, sparsity=0.3)
    for name, keep in sorted_masks(scores, "0.3").items():
        assert torch.equal(masks[name], keep)
    assert masks.score == "FromMean(power=1)"
    uniform = Pruner(FromMean(), Uniform())(weights, sparsity=0.5)
    assert [uniform.num_kept(name) for name in uniform] == [15, 15]


def test_rising_sparsities_walk_down_one_copy_by_the_scores_of_the_weights_as_they_were(weights):
    alone = [Pruner(FromMean())(weights, sparsity=s) for s in (0.3, 0.6)]
    ranking = Pruner(FromMean()).rank(weights)
    walked = [ranking.apply_(weights, s) for s in (0.3, 0.6)]
    assert [masks.digest() for masks in walked] == [masks.digest() for masks in alone]
    assert walked[1].is_nested_in(walked[0])


def test_a_formula_that_gives_the_weight_itself_leaves_it_as_it_is():
    weight = torch.ones(4, 4)
    ranking = Pruner(Given(lambda weight: weight)).rank({"weight": weight})
    ranking.apply_({"weight": weight}, 0.5)
    assert ranking.masks(0.75).num_pruned == 12


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda weight: weight[0], r"of weight 'layer.2.weight' has shape \(5,\), not \(6, 5\): give one per weight"),
        (lambda weight: -weight.abs(), "has 30 values that are negative, NaN or infinite: give numbers from 0 on"),
        (lambda weight: weight * torch.nan, "has 30 values that are negative, NaN or infinite"),
    ],
)
def test_what_is_no_score_is_refused_by_name(weights, give, message):
    with pytest.raises(ValueError, match=message):
        Pruner(Given(give)).rank(weights)


def test_a_file_that_is_read_in_pieces_takes_no_formula(tmp_path):
    backbone = TinyLanguageBackbone()
    model = backbone.build(num_labels=2, seed=0)
    assert prunable_weights(model)
    backbone.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="is a formula of whole matrices, which are not read here: prune the loaded"):
        prune_checkpoint(tmp_path / "model", tmp_path / "pruned", pruner=Pruner(FromMean()), sparsity=0.5)
