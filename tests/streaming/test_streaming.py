"""Streaming gives, bit for bit, the masks and zeros of pruning in memory, and no half file ever."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_model
from stored_models import LAYOUTS, assert_pruned, in_memory, tensors_of, tree, write
from torch import nn

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import (
    NM,
    ErdosRenyi,
    Explicit,
    Global,
    Lottery,
    Magnitude,
    Masks,
    PerRow,
    Pruner,
    Random,
    SavedMasks,
    Uniform,
    Unstructured,
    prunable_weights,
)
from essential_sparsity.streaming import prune, prune_checkpoint, shards, stored

OMP = Pruner()
PRUNERS = {
    "omp": (OMP, "0.5"),
    "random": (Pruner(Random(3), Global(), Unstructured()), "0.3"),
    "uniform": (Pruner(Magnitude(), Uniform(), Unstructured()), "0.7"),
    "erdos-renyi": (Pruner(Random(1), ErdosRenyi(kernel=True), Unstructured()), "0.6"),
    "explicit": (Pruner(Magnitude(), Explicit({"*.0.*": 0.5, "*.1*": 0.25}), Unstructured()), None),
    "per row": (Pruner(Magnitude(), PerRow(), Unstructured()), "0.4"),
    "2:4": (Pruner(Magnitude(), Global(), NM(2, 4)), None),
    "random 3:8 over outputs": (Pruner(Random(2), Global(), NM(3, 8, axis="output")), None),
}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Make tensors longer than what is read, masked and written at a time."""
    monkeypatch.setattr(stored, "WINDOW", 256)
    monkeypatch.setattr(shards, "WINDOW", 256)
    monkeypatch.setattr(shards, "PIECE", 48)
    monkeypatch.setattr("essential_sparsity.pruning.histogram.CHUNK", 40)


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
    (dense / "README.md").write_text("the parent's card")
    (dense / "pytorch_model.bin").write_bytes(b"dense")
    (dense / ".cache").mkdir()
    (dense / ".cache/x").write_text("")
    pruned = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert sorted(tree(tmp_path / "out")) == [
        "1_Pooling/config.json", "1_Pooling/model.safetensors", "README.md", "README.parent.md", "config.json",
        "masks.safetensors", "model.safetensors",
    ]  # fmt: skip
    assert (tmp_path / "out/README.parent.md").read_text() == "the parent's card"
    assert pruned.left_out == ("model.onnx", "pytorch_model.bin")
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


# --- killed, and started again ----------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from essential_sparsity.pruning import Pruner
from essential_sparsity.streaming import prune, prune_checkpoint
seen = []
write = prune.write_shard
def dying(shard, *rest):
    write(shard, *rest)
    seen.append(shard)
    if len(seen) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
prune.write_shard = dying
prune_checkpoint(sys.argv[1], sys.argv[2], pruner=Pruner(), sparsity="0.5")
"""


def test_a_killed_prune_leaves_no_half_file_and_goes_on(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", torch.bfloat16, num_layers=3), num_shards=4)
    killed = [sys.executable, "-c", KILLED, str(dense), str(tmp_path / "out")]
    assert subprocess.run(killed, check=False, capture_output=True).returncode == -9
    prune_checkpoint(dense, tmp_path / "at_once", pruner=OMP, sparsity="0.5")
    whole = tree(tmp_path / "at_once")
    for path in (tmp_path / "out").iterdir():
        assert path.name.startswith(".") or path.read_bytes() == whole[path.name]
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) <= 2
    shutil.rmtree(tmp_path / "at_once")

    again = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity="0.5")
    assert tree(tmp_path / "out") == whole
    assert [done["name"] for done in again.passes] == ["write"]  # what was counted is not counted again
    assert len(again.there) >= 1


@pytest.mark.parametrize("name", ["omp", "2:4"])
def test_a_failed_prune_goes_on_to_the_same_end(name, tmp_path, monkeypatch):
    pruner, sparsity = PRUNERS[name]
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=3), num_shards=3)
    write_shard = prune.write_shard

    def failing(shard, *rest):
        if "00003-of" in shard.name:
            raise OSError(28, "No space left on device")
        write_shard(shard, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(prune, "write_shard", failing)
        with pytest.raises(ValueError, match="is full: make room, and the same command goes on"):
            prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity)
    assert not (tmp_path / "out/masks.safetensors").exists()
    again = prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity)
    assert again.there == ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors")
    expected = in_memory(dense, pruner, sparsity)
    found = Masks.load(tmp_path / "out/masks.safetensors")
    assert found.digest() == expected.digest() and found.num_ties == expected.num_ties
    assert_pruned(dense, tmp_path / "out", expected)


def test_a_prune_that_is_killed_beside_its_weights_keeps_their_masks(tmp_path, monkeypatch):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=2), num_shards=2)
    with monkeypatch.context() as patched:
        patched.setattr(prune, "model_card", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    shutil.copytree(tmp_path / "out", tmp_path / "torn")
    again = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert len(again.there) == 2
    assert Masks.load(tmp_path / "out/masks.safetensors").digest() == in_memory(dense, OMP, 0.5).digest()
    (tmp_path / "torn/masks.safetensors").unlink()
    with pytest.raises(ValueError, match="has pruned weights and no masks of them: remove it and start again"):
        prune_checkpoint(dense, tmp_path / "torn", pruner=OMP, sparsity=0.5)


def test_a_finished_prune_returns_at_once(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    first = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity="0.50")
    assert again.finished_before and not first.finished_before
    assert again.num_pruned == first.num_pruned and again.passes == first.passes
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_two_prunes_do_not_share_a_folder(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))

    def meanwhile(current):
        if not (tmp_path / "told").exists():
            (tmp_path / "told").touch()
            with pytest.raises(BlockingIOError, match="in use by another prune"):
                prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)

    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5, tell=meanwhile)
    assert (tmp_path / "told").exists()


# --- refused, before a byte is written --------------------------------------------------------------------------------


def test_another_prune_in_the_folder_is_refused(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"belongs to another prune \(sparsity: '3/5', there: '1/2'\)"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.6)
    os.utime(dense / "model.safetensors", (1, 1))
    with pytest.raises(ValueError, match=r"belongs to another prune \(checkpoint\.model\.safetensors"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert tree(tmp_path / "out") == before


def test_a_folder_that_holds_other_files_is_refused(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"holds other files \(thesis\.tex\)"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)


@pytest.mark.parametrize(("out", "problem"), [
    ("dense", "is the checkpoint itself"), ("dense/pruned", "lies inside the checkpoint"), ("file", "is a file"),
])  # fmt: skip
def test_an_output_that_would_harm_the_checkpoint_is_refused(out, problem, tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    (tmp_path / "file").write_text("")
    before = tree(dense)
    with pytest.raises(ValueError, match=problem):
        prune_checkpoint(dense, tmp_path / out, pruner=OMP, sparsity=0.5)
    assert tree(dense) == before


def test_too_little_room_is_told_before_writing(tmp_path, monkeypatch):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - 1000, 1000))
    with pytest.raises(ValueError, match=r"needs 0\.00 GB and the disk has 0\.00 GB free: make room"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize(("dtype", "named"), [
    (torch.int8, "int8: pruned are float32, bfloat16 or float16; prune the checkpoint it was quantised from"),
    (torch.float8_e4m3fn, "float8_e4m3fn: .* quantised"),
    (torch.float64, "float64: .* convert it"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["omp", "random", "2:4"])
def test_weights_of_other_dtypes_are_refused_by_name(name, dtype, named, tmp_path):
    tensors = tensors_of("bert", num_layers=2)
    wrong = "bert.encoder.layer.1.output.dense.weight"
    dense = write(tmp_path / "dense", tensors | {wrong: tensors[wrong].to(dtype)})
    with pytest.raises(ValueError, match=f"weight '{wrong}' is {named}"):
        prune_checkpoint(dense, tmp_path / "out", pruner=PRUNERS[name][0], sparsity=PRUNERS[name][1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name(dtype, tmp_path):
    tensors = tensors_of("bert", dtype, num_layers=2)
    wrong = "encoder.layer.0.attention.self.key.weight"
    tensors[f"bert.{wrong}"][2, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    dense = write(tmp_path / "dense", tensors)
    with pytest.raises(ValueError, match=f"weight '{wrong}' has 3 entries that are NaN or infinite"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_pickle_is_refused(tmp_path):
    torch.save(tensors_of("bert", num_layers=1), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a pickle, which cannot be read in ranges: save it as safetensors"):
        prune_checkpoint(tmp_path / "pytorch_model.bin", tmp_path / "out", pruner=OMP, sparsity=0.5)


def test_a_forgotten_sparsity_is_told(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    with pytest.raises(ValueError, match=r"sparsity is not set, and this pruner implies none: add sparsity=0\.5"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP)


def test_a_pattern_that_does_not_fit_is_told_before_writing(tmp_path):
    tensors = tensors_of("bert", num_layers=1)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] = torch.ones(40, 15)
    dense = write(tmp_path / "dense", tensors)
    with pytest.raises(ValueError, match=r"'encoder\.layer\.0\.intermediate\.dense\.weight' has 15 inputs"):
        prune_checkpoint(dense, tmp_path / "out", pruner=PRUNERS["2:4"][0])
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_pruner_that_needs_more_than_weights_is_refused_by_name(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    with pytest.raises(ValueError, match=r"pruner Lottery needs the model at work .* use essential-sparsity evaluate"):
        prune_checkpoint(dense, tmp_path / "out", pruner=cast(Pruner, Lottery()), sparsity=0.5)


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
        f"blocks.0.{name}.weight": torch.randn(4, 2**20).bfloat16() for name in ("attn.proj", "mlp.fc1", "mlp.fc2")
    }
    large["blocks.0.attn.qkv.weight"] = torch.randn(12, 2**20).bfloat16()
    dense = write(tmp_path / "dense", large)  # 48 MiB, the largest tensor 24 MiB
    arguments = [str(path) for path in (small, dense, tmp_path / "out1", tmp_path / "out2")]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments], capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[2], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    assert int(done.stdout) < 32 * 2**20
