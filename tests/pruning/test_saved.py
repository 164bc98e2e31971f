"""Saved masks are a pruner: they fit the model they were made for, and no other."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from essential_sparsity.pruning import Explicit, Masks, Pruner, Random, SavedMasks, prunable_weights


def _model(width: int = 8, layers: int = 1) -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=layers, n_embd=width, n_head=2, vocab_size=10, n_positions=4))


@pytest.fixture
def model() -> nn.Module:
    return _model()


def _saved(masks: Masks, path: Path) -> SavedMasks:
    masks.save(path)
    return SavedMasks(path)


def test_saved_masks_are_given_as_they_are(model: nn.Module, tmp_path: Path) -> None:
    masks = Pruner(Random(1)).prune(model, sparsity=0.5).masks
    saved = _saved(masks, tmp_path / "some.safetensors")
    pruned = saved.prune(model)
    assert pruned.masks.digest() == masks.digest() == saved(prunable_weights(model)).digest()
    assert pruned.notes == {"masks": masks.digest()}
    assert saved.describe() == Pruner(Random(1)).describe()
    assert saved.calibration is None
    assert saved.prune(_model()).masks.digest() == masks.digest()  # other weights of the same shapes


def test_a_folder_gives_its_masks(model: nn.Module, tmp_path: Path) -> None:
    masks = Pruner().prune(model, sparsity=0.5).masks
    masks.save(tmp_path / "masks.safetensors")
    assert SavedMasks(str(tmp_path)).prune(model).masks.digest() == masks.digest()
    assert list(SavedMasks(tmp_path).inputs()) == ["masks/masks.safetensors"]


def test_sparsity_follows_from_the_masks(model: nn.Module, tmp_path: Path) -> None:
    saved = _saved(Pruner().prune(model, sparsity="0.29").masks, tmp_path / "m.safetensors")
    assert saved.resolve(None) == Fraction(29, 100) == saved.resolve("0.29")
    with pytest.raises(ValueError, match=r"sparsity=0.5 contradicts pruner.masks=.*, whose sparsity is 0.29: give"):
        saved.resolve(0.5)
    with pytest.raises(ValueError, match=r"sparsity=1.2 lies outside"):
        saved.resolve(1.2)


def test_masks_that_were_asked_for_without_a_number_have_their_measured_sparsity(
    model: nn.Module, tmp_path: Path
) -> None:
    masks = Pruner(allocation=Explicit({"*c_fc*": 0.3})).prune(model).masks
    saved = _saved(masks, tmp_path / "m.safetensors")
    assert saved.resolve(None) == Fraction(masks.num_pruned, masks.num_prunable)
    assert saved.resolve(masks.sparsity) == Fraction(str(masks.sparsity))
    assert saved.prune(model, sparsity=masks.sparsity).masks.digest() == masks.digest()


def test_zero_is_dense(model: nn.Module, tmp_path: Path) -> None:
    saved = _saved(Pruner().prune(model, sparsity=0.5).masks, tmp_path / "m.safetensors")
    assert saved.prune(model, sparsity=0.0).masks.num_pruned == 0


def test_the_origin_is_told_where_it_is_known(model: nn.Module, tmp_path: Path) -> None:
    found: dict[str, Tensor] = dict(Pruner().prune(model, sparsity=0.5).masks)
    saved = _saved(Masks.from_tensors(found, parent="abc"), tmp_path / "m.safetensors")
    assert saved.origin() == "abc" == saved.prune(model).notes["masks_parent"]
    assert _saved(Masks.from_tensors(found), tmp_path / "n.safetensors").origin() is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: _model(layers=2), r"weights have no mask \('h.1.attn.c_attn.weight'"),
        (lambda: _model(width=12), r"mask 'h.0.attn.c_attn.weight' has shape \(8, 24\), the weight \(12, 36\)"),
    ],
)
def test_masks_of_another_model_are_refused_by_name(model: nn.Module, tmp_path: Path, other: Any, message: str) -> None:
    saved = _saved(Pruner().prune(model, sparsity=0.5).masks, tmp_path / "m.safetensors")
    for sparsity in (None, 0.0):
        with pytest.raises(ValueError, match=f"{message}.*these masks belong to another model"):
            saved.prune(other(), sparsity=sparsity)


def test_what_holds_no_masks_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    for path, error, message in (
        (tmp_path, FileNotFoundError, "holds no masks.safetensors: give a masks file, or the folder of a finished run"),
        (tmp_path / "none.safetensors", FileNotFoundError, "does not exist: give a masks file"),
        (tmp_path / "model.safetensors", ValueError, "holds no masks"),
    ):
        for ask in ("check", "inputs", "origin", "describe"):
            with pytest.raises(error, match=message) as caught:
                getattr(SavedMasks(path), ask)()
            assert "\n" not in str(caught.value)
        with pytest.raises(error, match=message):
            SavedMasks(path).resolve(None)
