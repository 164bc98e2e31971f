"""The command prune: what a user types, what is printed, and what lies in the folder afterwards."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from essential_sparsity.apps.prune import tell
from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import NM, Global, Magnitude, Masks, Pruner, Random, Unstructured, prunable_names
from essential_sparsity.streaming import Pass


@pytest.fixture
def checkpoint(tmp_path):
    """Write a small ViT in timm's layout, bf16."""
    shapes = {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (64, 16), "mlp.fc2": (16, 64)}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"blocks.{i}.{kind}.weight": torch.randn(s, generator=generator) for i in (0, 1) for kind, s in shapes.items()
    }
    tensors["head.weight"] = torch.randn(10, 16, generator=generator)
    (tmp_path / "vit").mkdir()
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, tmp_path / "vit/model.safetensors")
    (tmp_path / "vit/config.json").write_text('{"architecture": "vit_tiny"}')
    return tmp_path / "vit"


def loaded(folder):
    stored = Checkpoint.open(folder)
    return {own: stored[name] for own, name in prunable_names(stored).items()}


@pytest.mark.parametrize(("words", "pruner"), [
    ("sparsity=0.5", Pruner()),
    ("sparsity=0.5 pruner=random seed=3", Pruner(Random(3), Global(), Unstructured())),
    ("pruner=nm pruner.pattern=2:4", Pruner(Magnitude(), Global(), NM(2, 4))),
    ("pruner=nm", Pruner(Magnitude(), Global(), NM(2, 4))),
])  # fmt: skip
def test_a_checkpoint_is_pruned_beside_its_masks(words, pruner, checkpoint, command, tmp_path):
    code, out, err = command(f"prune checkpoint=vit out=pruned {words}")
    assert code == 0, err
    expected = pruner(loaded(checkpoint), sparsity=0.5)
    assert Masks.load(tmp_path / "pruned/masks.safetensors").digest() == expected.digest()
    n, total = expected.num_prunable, expected.num_prunable + 160
    assert f"sparsity 0.5: {n // 2:,} of {n:,} prunable weights are zero" in out
    assert f"bytes of all tensors: {2 * total:,}" in out
    assert ("stored as 2:4" in out) is ("nm" in words)
    assert "GB/s" in out and "pruned: pruned" in out
    for name, weight in loaded(tmp_path / "pruned").items():
        assert torch.equal(weight == 0, ~expected[name] | (loaded(checkpoint)[name] == 0))


def test_the_same_command_again_says_that_it_is_done(checkpoint, command):
    assert command("prune checkpoint=vit out=pruned sparsity=0.5")[0] == 0
    code, out, _ = command("prune checkpoint=vit out=pruned sparsity=0.5")
    assert code == 0 and "there already: pruned" in out
    code, _, err = command("prune checkpoint=vit out=pruned sparsity=0.25")
    assert code == 2 and "belongs to another prune (sparsity: '1/4', there: '1/2'): give another folder" in err


def test_masks_of_a_pruned_checkpoint_are_applied_to_another(checkpoint, command, tmp_path):
    assert command("prune checkpoint=vit out=pruned sparsity=0.5")[0] == 0
    tensors = Checkpoint.open(checkpoint)
    (tmp_path / "other").mkdir()
    save_file({name: -tensors[name] for name in tensors}, tmp_path / "other/model.safetensors")
    code, out, err = command("prune checkpoint=other out=again pruner=saved pruner.masks=pruned")
    assert code == 0, err
    assert "the masks were chosen on weights" in out
    first, second = (Masks.load(tmp_path / name / "masks.safetensors") for name in ("pruned", "again"))
    assert first.digest() == second.digest()


@pytest.mark.parametrize(("words", "line"), [
    ("out=x sparsity=0.5", "checkpoint is not set: add checkpoint=…"),
    ("checkpoint=vit sparsity=0.5", "out is not set: add out=…"),
    ("checkpoint=vot out=x sparsity=0.5", "checkpoint vot does not exist"),
    ("checkpoint=vit out=x", "sparsity is not set"),
    ("checkpoint=vit out=x sparsity=50", "sparsity=50 lies outside [0, 1): did you mean 0.5?"),
    ("checkpoint=vit out=vit sparsity=0.5", "out=vit is the checkpoint itself"),
    ("checkpoint=vit out=x pruner=opm sparsity=0.5", "did you mean omp?"),
    ("checkpoint=vit out=x pruner=nm sparsity=0.3", "contradicts pattern 2:4"),
    ("checkpoint=vit out=x pruner=lottery sparsity=0.5", "pruner Lottery needs the model at work"),
    ("checkpoint=vit out=x pruner=nm pruner.pattern=124", "as YAML reads 2:4 in base 60"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, line, checkpoint, command, tmp_path):
    code, _, err = command(f"prune {words}")
    assert code == 2
    assert line in err and err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_progress_is_told_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    tell(Pass("write", 4_000_000_000, done=1_000_000_000, seconds=2.0))
    tell(Pass("write", 4_000_000_000, done=4_000_000_000, seconds=8.0, finished=True))
    tell(Pass("refine", 1_000_000_000, done=1_100_000_000, seconds=2.0))  # windows of two threads overlap
    first, second, beyond = capsys.readouterr().err.split("\r")[1:]
    assert "100% of 1.00 GB" in beyond and beyond.rstrip().endswith(" 0 s to go")
    assert first.rstrip(" ") == "write: 25% of 4.00 GB, 0.50 GB/s, 6 s to go"
    assert second.rstrip() == "write: 100% of 4.00 GB, 0.50 GB/s, in 8 s" and second.endswith("\n")
