"""Stored masks say which weights they were chosen on, and a run says where those are not its own."""

import shutil
from typing import Any

from safetensors.torch import load_file, save_file

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import Masks, SavedMasks
from essential_sparsity.training import fit
from tests.training_parts import arguments

STEPS = {"max_steps": 2, "accelerator": "cpu"}


def test_masks_on_the_weights_they_were_chosen_on_are_no_news_and_on_others_are_told(tmp_path):
    given: dict[str, Any] = arguments("vision", tmp_path / "dense") | {"trainer": STEPS}
    dense: dict[str, Any] = given | {"sparsity": 0.0, "keep": ["model"]}
    fit(**dense)
    model = tmp_path / "dense" / "model"
    given |= {
        "backbone": given["backbone"].__class__(**{**vars(given["backbone"]), "path": str(model), "pretrained": True})
    }
    fit(**given | {"run": tmp_path / "omp"})
    stored = Masks.load(tmp_path / "omp" / "masks.safetensors")
    assert stored.parent == Checkpoint.open(model).digest()

    shutil.copy(tmp_path / "omp" / "masks.safetensors", model)  # as `prune` leaves them beside the weights
    again: dict[str, Any] = given | {"pruner": SavedMasks(tmp_path / "omp"), "sparsity": None}
    assert "masks_chosen_on" not in fit(**again | {"run": tmp_path / "again"})["pruning"]
    assert Masks.load(tmp_path / "again" / "masks.safetensors").digest() == stored.digest()

    (file,) = model.glob("model*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(file).items()}, file)
    notes = fit(**again | {"run": tmp_path / "others"})["pruning"]
    assert notes["masks_chosen_on"] == stored.parent and notes["applied_to"] == Checkpoint.open(model).digest()
