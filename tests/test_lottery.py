"""Tickets: rounds are runs, masks come from trained weights within the round before, training starts from the start."""

from typing import Any, cast

import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file, save_file

from essential_sparsity.parents import continued
from essential_sparsity.pruning import (
    Architecture,
    Lottery,
    Masks,
    MatchedCompute,
    Pruned,
    Pruner,
    ReassignedLottery,
    prunable_names,
    prunable_weights,
)
from essential_sparsity.pruning.lottery import Round, survivors_above
from essential_sparsity.runs import ForeignRun, Run
from essential_sparsity.training import fit
from tests.training_parts import arguments

STEPS = {"max_steps": 6, "accelerator": "cpu"}


def ticket(tmp_path, levels, *, rewind=0, pruner=None, pretrained=False, **changed):
    """Give the arguments of the run of a ticket at the last of `levels`; its rounds are runs in folders by level."""
    shared: dict[str, Any] = arguments("vision", tmp_path / "unused") | {"trainer": STEPS}
    lottery = Lottery(step=levels[1], rewind=rewind)
    if pretrained:
        backbone = shared["backbone"]
        backbone.save(backbone.build(num_labels=10, seed=3), tmp_path / "pretrained")
        shared["backbone"] = continued(backbone, tmp_path / "pretrained")
    chain = None
    for level in levels[:-1]:
        run = tmp_path / f"round-{level}"
        chain = shared | {"run": run, "pruner": lottery, "sparsity": level, "seed": 1000, "parent": chain}
    last = {"run": tmp_path / "ticket", "pruner": pruner or lottery, "sparsity": levels[-1], "parent": chain}
    return shared | last | changed


def weights_of(folder):
    return load_file(next(folder.glob("*.safetensors")))


def by_canonical_name(weights):
    return {name: weights[name] for name in prunable_names(weights)}


def slow_ticket(trained, before, sparsity):
    """One sort over all survivors' magnitudes: the obvious way."""
    order = sorted(
        (not bool(before[name].reshape(-1)[i]), abs(float(w)), -n, -i)
        for n, name in enumerate(before)
        for i, w in enumerate(trained[name].reshape(-1))
        if bool(before[name].reshape(-1)[i])
    )
    total = sum(before[name].numel() for name in before)
    num_gone = sum(int((~before[name]).sum()) for name in before)
    names = list(before)
    keep = {name: before[name].clone() for name in before}
    for _, _, n, i in order[: int(sparsity * total + 0.5) - num_gone]:
        keep[names[-n]].reshape(-1)[-i] = False
    return keep


def test_a_round_ranks_trained_weights_within_the_mask_before():
    generator = torch.Generator().manual_seed(0)
    trained = {f"blocks.{i}.mlp.fc1.weight": torch.randn(6, 5, generator=generator) for i in range(2)}
    before = Pruner()(trained, sparsity=0.3)
    moved = {name: torch.randn(6, 5, generator=generator) * before[name] for name in trained}
    moved["blocks.0.mlp.fc1.weight"][before["blocks.0.mlp.fc1.weight"]] = 0.0  # survivors that training took to zero
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(torch.nn.Module() for _ in range(2))
    for block in model.blocks:
        block.mlp = torch.nn.Module()
        block.mlp.fc1 = torch.nn.Linear(5, 6)
    architecture = Architecture.from_patterns(r"blocks\.(\d+)\.", ["mlp.fc1"])
    lottery = Lottery(step=0.1).after(Round(moved, before))
    for sparsity in (0.3, 0.4, 0.5, 0.9):
        masks = lottery.prune(model, sparsity=sparsity, architecture=architecture).masks
        expected = slow_ticket(moved, before, sparsity)
        assert all(torch.equal(masks[name], expected[name]) for name in masks)
        assert masks.is_nested_in(before)
    with pytest.raises(ValueError, match="rounds must rise"):
        lottery.prune(model, sparsity=0.2, architecture=architecture)
    assert all(
        torch.equal(weight != 0, before[name]) for name, weight in survivors_above(cast(Round, lottery.before)).items()
    )


def test_rounds_come_in_steps_of_all_weights():
    assert [float(level) for level in Lottery(step=0.1).rounds(0.3)] == [0.0, 0.1, 0.2]
    assert [float(level) for level in Lottery(step=0.2).rounds(0.5)] == [0.0, 0.2, 0.4]
    assert Lottery().rounds(0.0) == Lottery().rounds(None) == []
    assert MatchedCompute(0.1).num_trainings(0.3) == 4 and MatchedCompute(0.1).num_trainings(0) == 1


def test_a_ticket_starts_from_the_pretrained_weights_and_leaves_a_run_per_round(tmp_path):
    given = ticket(tmp_path, [0.0, 0.3, 0.6], pretrained=True)
    metrics = fit(**given)
    masks = [Masks.load(tmp_path / name / "masks.safetensors") for name in ("round-0.0", "round-0.3", "ticket")]
    assert [m.num_pruned for m in masks] == [0, *(int(s * masks[0].num_prunable + 0.5) for s in (0.3, 0.6))]
    assert masks[2].is_nested_in(masks[1]) and metrics["sparsity"] == masks[2].sparsity
    for level, found in ((0.0, masks[1]), (0.3, masks[2])):
        trained = by_canonical_name(weights_of(tmp_path / f"round-{level}" / "model"))
        assert found.digest() == Pruner()(trained, sparsity=found.requested).digest()  # zeros are the smallest
    info = Run(tmp_path / "ticket").info
    assert info["parent"] == Run(tmp_path / "round-0.3").info["id"]

    # the start: the same training by hand, dense weights times the ticket
    by_hand = fit(**{**given, "run": tmp_path / "by hand", "parent": None, "pruner": Saved(masks[2]), "sparsity": None})
    assert by_hand["value"] == metrics["value"] and by_hand["metrics"] == metrics["metrics"]


class Saved:
    """The plainest pruner: masks that are there."""

    calibration = None

    def __init__(self, masks):
        self.masks = masks

    def __repr__(self):
        return "Saved()"

    def resolve(self, sparsity):
        return self.masks.requested

    def describe(self):
        return {"score": "saved"}

    def prune(self, model, **options):
        return Pruned(self.masks)


def test_an_untrained_model_starts_its_rounds_and_its_ticket_from_one_initialisation(tmp_path):
    started = {}

    class First(Callback):
        def __init__(self, name):
            self.name = name

        def __repr__(self):
            return f"First({self.name!r})"

        def on_train_start(self, trainer, pl_module):
            weights = cast(torch.nn.Module, pl_module.model).named_parameters()
            started[self.name] = {name: weight.detach().clone() for name, weight in weights}

    given = ticket(tmp_path, [0.0, 0.3], callbacks=[First("ticket")])
    given["parent"] |= {"callbacks": [First("first round")]}
    fit(**given)
    masks = Masks.load(tmp_path / "ticket" / "masks.safetensors")
    for name in masks:
        dense, pruned = (started[run][name] for run in ("first round", "ticket"))
        assert torch.equal(pruned, torch.where(masks[name], dense, 0.0))
    assert not torch.equal(started["first round"]["head.weight"], started["ticket"]["head.weight"])


def test_a_ticket_of_rounds_whose_weights_changed_is_refused(tmp_path):
    given = ticket(tmp_path, [0.0, 0.3])
    fit(**given)
    (file,) = (tmp_path / "round-0.0" / "model").glob("model*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(ForeignRun, match=r"round before: model\.safetensors"):
        fit(**given)


def test_weights_are_rewound_to_a_step_of_the_first_round(tmp_path):
    fit(**ticket(tmp_path, [0.0, 0.3, 0.6], rewind=4))
    kept = tmp_path / "round-0.0" / "model_at_step=4"
    assert kept.is_dir() and not (tmp_path / "round-0.3" / "model_at_step=4").exists()
    early, late = weights_of(kept), weights_of(tmp_path / "round-0.0" / "model")
    assert early.keys() == late.keys() and any(not torch.equal(early[n], late[n]) for n in early)
    inputs = Run(tmp_path / "ticket").info["inputs"]
    assert any(key.startswith("model_at_step=4/") for key in inputs)


def test_a_step_that_is_never_reached_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weights of step 99 are to be kept, but training has 6 steps"):
        fit(**ticket(tmp_path, [0.0, 0.3], rewind=99))


def test_a_reassigned_ticket_keeps_as_many_per_tensor_at_other_places(tmp_path):
    fit(**ticket(tmp_path, [0.0, 0.3]))
    fit(**ticket(tmp_path, [0.0, 0.3], pruner=ReassignedLottery(step=0.3, seed=7), run=tmp_path / "reassigned"))
    found, drawn = (Masks.load(tmp_path / name / "masks.safetensors") for name in ("ticket", "reassigned"))
    assert [drawn.num_kept(name) for name in drawn] == [found.num_kept(name) for name in found]
    total = drawn.similarity(found)[-1]
    assert float(total["cosine"]) == pytest.approx(float(total["layer_matched_chance"]), abs=0.02)


def test_matched_compute_trains_as_long_as_all_rounds(tmp_path):
    given = arguments("vision", tmp_path / "run")
    given |= {"trainer": {"max_steps": 4, "accelerator": "cpu"}, "pruner": MatchedCompute(0.25), "sparsity": 0.5}
    metrics = fit(**given)
    assert metrics["steps"] == 4 * 3


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"step": 0}, "pruner.step=0 removes nothing"),
        ({"step": 1.5}, "lies outside"),
        ({"rewind": -1}, "is no step"),
        ({"rewind": 0.5}, "is no step"),
    ],
)
def test_wrong_settings_are_named(wrong, line):
    with pytest.raises(ValueError, match=line):
        Lottery(**wrong)


def test_a_ticket_without_a_round_before_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no round before it"):
        fit(**ticket(tmp_path, [0.0, 0.3], parent=None))
    model = arguments("vision", tmp_path)["backbone"].build(num_labels=2, seed=0)
    assert prunable_weights(model)
    with pytest.raises(ValueError, match="needs the round before it"):
        Lottery().prune(model, sparsity=0.3)
