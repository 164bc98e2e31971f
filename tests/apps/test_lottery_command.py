"""The command `lottery`: one run per round, shared by all tickets; the seed that found a ticket does not train it."""

from pathlib import Path

import pytest

from essential_sparsity.pruning import Masks
from essential_sparsity.runs import Run

COMMAND = "lottery backbone=vit_tiny data=digits name=t trainer.max_epochs=1 trainer.max_steps=3 pruner.step=0.2"


def test_the_command_leaves_a_run_and_its_masks_per_round(command, tmp_path: Path):
    code, out, err = command(f"{COMMAND} sparsity=0.4")
    assert code == 0 and "at sparsity 0.4" in out, err
    rounds = sorted((tmp_path / "outputs/t/parents").glob("[!.]*"))
    assert sorted(Masks.load(r / "masks.safetensors").sparsity for r in rounds) == pytest.approx([0.0, 0.2], abs=1e-4)
    assert {Run(r).info["config"]["seed"] for r in rounds} == {1000}

    code, out, err = command(f"{COMMAND} sparsity=0.4")
    assert code == 0 and "there already" in out
    code, out, err = command(f"{COMMAND} sparsity=0.6,0.2 seed=0 -m")  # shares its rounds
    assert code == 0 and "2 computed" in out, out + err
    assert len(list((tmp_path / "outputs/t/parents").glob("[!.]*"))) == 3


def test_a_ticket_is_not_trained_with_the_seed_that_found_it(command):
    code, _, err = command(f"{COMMAND} pruner.search_seed=0")
    assert code == 2 and "seed=0 is the search's own" in err
