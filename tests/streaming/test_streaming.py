"""Streaming gives, bit for bit, the masks and zeros of pruning in memory, within memory that does not grow."""

import os
import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest
import torch
from safetensors.torch import save_model
from stored_models import LAYOUTS, OMP, PRUNERS, assert_pruned, in_memory, tensors_of, tree, write
from torch import nn

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import (
    Explicit,
    Magnitude,
    Masks,
    PerRow,
    Pruner,
    SavedMasks,
    Unstructured,
    prunable_weights,
)
from essential_sparsity.streaming import Pass, choice, prune_checkpoint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PRUNERS)
def test_masks_and_zeros_are_those_of_the_loaded_model(name, dtype, tmp_path):
    pruner, sparsity = PRUNERS[name]
    dense = write(tmp_path / "dense", tensors_of("bert", dtype, num_layers=3), num_shards=3)
    expected = in_memory(dense, pruner, sparsity)
    pruned = prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity)
    found = Masks.load(tmp_path / "out/masks.safetensors")
    assert found.digest() == expected.digest()
    assert (found.num_ties, found.requested, found.score, found.allocation, found.pattern) == (
        expected.num_ties, expected.requested, expected.score, expected.allocation, expected.pattern
    )  # fmt: skip
    assert found.parent == pruned.parent == Checkpoint.open(dense).digest()
    assert pruned.num_pruned == expected.num_pruned > 0
    assert_pruned(dense, tmp_path / "out", expected)


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["omp", "2:4"])
def test_every_layout_streams_whole_and_in_shards(name, layout, num_shards, tmp_path):
    pruner, sparsity = PRUNERS[name]
    dense = write(tmp_path / "dense", tensors_of(layout), num_shards=num_shards)  # layer 10 lies before layer 2
    prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity)
    expected = in_memory(dense, pruner, sparsity)
    assert Masks.load(tmp_path / "out/masks.safetensors").digest() == expected.digest()
    assert_pruned(dense, tmp_path / "out", expected)


def test_a_model_of_mixed_dtypes_is_compared_in_fp32(tmp_path):
    tensors = tensors_of("bert", num_layers=2)
    tensors |= {name: value.bfloat16() for name, value in tensors.items() if ".layer.1." in name}
    dense = write(tmp_path / "dense", tensors)
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert_pruned(dense, tmp_path / "out", in_memory(dense, OMP, 0.5))


def test_a_single_file_and_an_index_are_checkpoints_too(tmp_path):
    tensors = tensors_of("timm", num_layers=2)
    for number, dense in enumerate([
        write(tmp_path / "whole", tensors) / "model.safetensors",
        write(tmp_path / "cut", tensors, num_shards=2) / "model.safetensors.index.json",
    ]):  # fmt: skip
        out = tmp_path / f"out{number}"
        prune_checkpoint(dense, out, pruner=OMP, sparsity=0.5)
        assert (out / dense.name).is_file() and not (out / "config.json").exists()
        expected = in_memory(dense, OMP, 0.5)
        assert Masks.load(out / "masks.safetensors").digest() == expected.digest()
        assert int((Checkpoint.open(out)["blocks.0.attn.qkv.weight"] == 0).sum()) > 0


def test_weights_of_sparsity_zero_are_copied_with_masks_that_keep_all(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=2), num_shards=2)
    pruned = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.0)
    assert pruned.num_pruned == 0
    for file in dense.glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


def test_the_other_files_come_along_and_dense_copies_in_other_formats_stay_behind(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    (dense / "1_Pooling").mkdir()
    (dense / "1_Pooling/config.json").write_text("{}")
    (dense / "1_Pooling/model.safetensors").write_bytes(b"a further part of the model")
    (dense / "1_Pooling/model.onnx").write_bytes(b"dense")
    (dense / "2_Dense").mkdir()
    (dense / "2_Dense/pytorch_model.bin").write_bytes(b"a further part of the model")
    for place in ("original/consolidated.00.pth", "original/params.json", "openvino/model.bin", "old/last.ckpt"):
        (dense / place).parent.mkdir(exist_ok=True)
        (dense / place).write_bytes(b"dense")
    (dense / "README.md").write_text("the parent's card")
    (dense / "pytorch_model.bin").write_bytes(b"dense")
    (dense / ".cache").mkdir()
    (dense / ".cache/x").write_text("")
    pruned = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert sorted(tree(tmp_path / "out")) == [
        "1_Pooling/config.json", "1_Pooling/model.safetensors", "2_Dense/pytorch_model.bin", "README.md",
        "README.parent.md", "config.json", "masks.safetensors", "model.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "out/README.parent.md").read_text() == "the parent's card"
    assert pruned.left_out == (
        "1_Pooling/model.onnx", "old/last.ckpt", "openvino/", "original/", "pytorch_model.bin"
    )  # fmt: skip
    card = (tmp_path / "out/README.md").read_text()
    for word in (pruned.parent, "score magnitude, allocation global", "0.5", f"{pruned.num_pruned:,}"):
        assert word in card


class Tied(nn.Module):
    """Two BERT layers whose queries are one parameter."""

    def __init__(self):
        super().__init__()
        for name, value in tensors_of("bert", num_layers=2).items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value))
        tied = "bert/encoder/layer/{}/attention/self/query/weight"
        self.register_parameter(tied.format(1), self.get_parameter(tied.format(0)))

    def named_parameters(self, *arguments, **keywords):
        for name, value in super().named_parameters(*arguments, **keywords):
            yield name.replace("/", "."), value

    def state_dict(self, *arguments, **keywords):
        return {name: value.detach() for name, value in self.named_parameters(remove_duplicate=False)}


def test_tied_weights_are_pruned_once(tmp_path):
    model = Tied()
    dense = tmp_path / "dense.safetensors"
    save_model(model, str(dense))
    pruned = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    weights = prunable_weights(model)
    assert pruned.num_prunable == sum(weight.numel() for weight in weights.values())
    assert pruned.num_pruned == OMP(weights, sparsity=0.5).num_pruned


def test_sizes_are_counted_as_they_would_be_stored(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", torch.bfloat16, num_layers=2))
    total = sum(tensor.nbytes for tensor in tensors_of("bert", torch.bfloat16, num_layers=2).values())
    half = prune_checkpoint(dense, tmp_path / "omp", pruner=OMP, sparsity=0.5)
    n = half.num_prunable
    assert half.bytes_dense == total and half.bytes_two_four is None
    assert half.bytes_bitmask == total - 2 * n + n // 8 + 2 * (n - half.num_pruned)
    structured = prune_checkpoint(dense, tmp_path / "nm", pruner=PRUNERS["2:4"][0])
    assert structured.sparsity == 0.5
    assert structured.bytes_two_four == total - 2 * n + n * 2 * 9 // 16


# --- saved masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [None, "0.4"])
def test_saved_masks_are_applied_to_any_checkpoint_that_they_fit(sparsity, tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=3))
    prune_checkpoint(dense, tmp_path / "first", pruner=OMP, sparsity="0.4")
    masks = Masks.load(tmp_path / "first/masks.safetensors")
    trained = write(
        tmp_path / "trained", {n: -3 * w for n, w in tensors_of("bert", num_layers=3).items()}, num_shards=3
    )
    for folder, foreign in ((dense, False), (trained, True)):
        out = tmp_path / f"{folder.name}-out"
        pruned = prune_checkpoint(folder, out, pruner=SavedMasks(tmp_path / "first"), sparsity=sparsity)
        assert_pruned(folder, out, masks)
        found = Masks.load(out / "masks.safetensors")
        assert (found.digest(), found.num_ties, found.parent) == (masks.digest(), masks.num_ties, masks.parent)
        assert (found.requested, found.score) == (masks.requested, masks.score)
        assert pruned.masks_parent == (masks.parent if foreign else None)
        assert ("masks chosen on other weights" in (out / "README.md").read_text()) is foreign
    dense_again = prune_checkpoint(dense, tmp_path / "all", pruner=SavedMasks(tmp_path / "first"), sparsity=0.0)
    assert dense_again.num_pruned == 0


def test_saved_masks_that_do_not_fit_are_refused(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=3))
    prune_checkpoint(dense, tmp_path / "first", pruner=OMP, sparsity="0.4")
    saved = SavedMasks(tmp_path / "first")
    for name, tensors, problem in [
        ("more", tensors_of("bert", num_layers=4), r"6 weights have no mask .*another model"),
        ("fewer", tensors_of("bert", num_layers=2), r"6 masks have no weight .*another model"),
    ]:
        with pytest.raises(ValueError, match=problem):
            prune_checkpoint(write(tmp_path / name, tensors), tmp_path / "out", pruner=saved)
    wider = tensors_of("bert", num_layers=3)
    wider["bert.encoder.layer.1.output.dense.weight"] = torch.ones(16, 48)
    with pytest.raises(ValueError, match=r"has shape \(16, 40\), the weight \(16, 48\)"):
        prune_checkpoint(write(tmp_path / "wider", wider), tmp_path / "out", pruner=saved)
    with pytest.raises(ValueError, match=r"sparsity=0\.5 contradicts .*sparsity is 0\.4"):
        prune_checkpoint(dense, tmp_path / "out", pruner=saved, sparsity=0.5)
    with pytest.raises(ValueError, match="holds no masks"):
        prune_checkpoint(dense, tmp_path / "out", pruner=SavedMasks(dense / "model.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"holds no masks\.safetensors"):
        prune_checkpoint(dense, tmp_path / "out", pruner=SavedMasks(dense))
    assert not (tmp_path / "out").exists()


def test_a_kind_inside_a_fused_matrix_is_refused(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("timm", num_layers=1))
    pruner = Pruner(Magnitude(), Explicit({"kind:query": 0.5}), Unstructured())
    with pytest.raises(ValueError, match="splits fused matrices by kind"):
        prune_checkpoint(dense, tmp_path / "out", pruner=pruner)


# --- passes, threads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype", "passes"), [
    ("omp", torch.float32, ["count", "refine", "ties", "write"]),
    ("uniform", torch.float32, ["count", "refine", "ties", "write"]),
    ("omp", torch.bfloat16, ["count", "write"]),
    ("2:4", torch.float32, ["check", "write"]),
    ("random 3:8 over outputs", torch.float32, ["write"]),
])  # fmt: skip
def test_no_pass_goes_on_beyond_its_end(name, dtype, passes, tmp_path, monkeypatch):
    monkeypatch.undo()  # real windows: one holds a whole weight
    dense = write(tmp_path / "dense", tensors_of("bert", dtype, num_layers=2))
    told: dict[str, Pass] = {}
    pruner, sparsity = PRUNERS[name]
    prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity, tell=lambda p: told.update({p.name: p}))
    assert list(told) == passes
    assert all(each.done == each.num_bytes for each in told.values())


class Counted(Pruner):
    """Rows, of which it is noted how many weights are ranked at a time."""

    inside, most, second, patience = 0, 0, Event(), 0.0

    def rank(self, weights, **keywords):
        Counted.inside += 1
        Counted.most = max(Counted.most, Counted.inside)
        Counted.second.set() if Counted.inside > 1 else Counted.second.wait(Counted.patience)
        found = super().rank(weights, **keywords)
        Counted.inside -= 1
        return found


@pytest.mark.parametrize(("long", "most"), [(40, 1), (10**6, 2)])
def test_weights_whose_rows_lie_across_them_are_masked_one_at_a_time(long, most, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "_LONG", long)
    monkeypatch.setattr(Counted, "most", 0)
    monkeypatch.setattr(Counted, "second", Event())
    monkeypatch.setattr(Counted, "patience", 0.02 if most == 1 else 5.0)  # ends as soon as a second one comes
    pruner = Counted(Magnitude(), PerRow(), Unstructured())
    dense = write(tmp_path / "dense", tensors_of("gpt2", num_layers=3))
    prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=0.5)
    assert Counted.most == most
    assert_pruned(dense, tmp_path / "out", in_memory(dense, PRUNERS["per row"][0], 0.5))


# --- real, and memory -------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_real_model_pruned_in_shards_loads_in_plain_transformers(es_models, tmp_path, monkeypatch):
    from transformers import AutoModel

    monkeypatch.undo()  # real windows
    model = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "dense", max_shard_size="12MB")
    pruned = prune_checkpoint(tmp_path / "dense", tmp_path / "out", pruner=OMP, sparsity="0.5")
    weights = prunable_weights(model)
    expected = OMP(weights, sparsity="0.5")
    assert pruned.num_pruned == expected.num_pruned == pruned.num_prunable // 2
    assert Masks.load(tmp_path / "out/masks.safetensors").digest() == expected.digest()
    loaded = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    expected.apply_(model)
    for (name, ours), theirs in zip(loaded.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


MEMORY = """
import sys
from tests.bench.measure import peak_memory
from essential_sparsity.pruning import Pruner
from essential_sparsity.streaming import prune_checkpoint
prune_checkpoint(sys.argv[1], sys.argv[3], pruner=Pruner(), sparsity="0.5")
print(peak_memory(lambda: prune_checkpoint(sys.argv[2], sys.argv[4], pruner=Pruner(), sparsity="0.5"))[1])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    small = write(tmp_path / "small", tensors_of("bert", torch.bfloat16, num_layers=2))
    large = {
        f"blocks.{layer}.{name}.weight": torch.randn(rows, 2**20).bfloat16()
        for layer in range(4)
        for name, rows in {"attn.qkv": 12, "attn.proj": 4, "mlp.fc1": 4, "mlp.fc2": 4}.items()
    }
    dense = write(tmp_path / "dense", large)  # 192 MiB, the largest tensor 24 MiB
    arguments = [str(path) for path in (small, dense, tmp_path / "out1", tmp_path / "out2")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    assert int(done.stdout) < 72 * 2**20  # windows, one tensor; not a share of the checkpoint (33 MiB here)
