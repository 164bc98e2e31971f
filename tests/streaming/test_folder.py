"""A prune that is killed goes on, and what would harm is refused before a byte is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from typing import cast

import pytest
import torch
from stored_models import OMP, PRUNERS, assert_pruned, in_memory, tensors_of, tree, write

from essential_sparsity.pruning import NM, Architecture, Global, Lottery, Magnitude, Masks, Pruner
from essential_sparsity.streaming import prune, prune_checkpoint

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


def ended(*arguments, **keywords):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["prune.choose", "folder.write_json", "prune._write_shards"])
def test_a_prune_that_ends_before_its_first_shard_starts_again(place, tmp_path, monkeypatch):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=2), num_shards=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(f"essential_sparsity.streaming.{place}", ended)
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    for name in ("..prune.json.ab12cd.part", ".masks.safetensors.part"):  # what a killed process may leave
        (tmp_path / "out" / name).write_bytes(b"half")
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert_pruned(dense, tmp_path / "out", in_memory(dense, OMP, 0.5))
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("name", ["omp", "2:4", "per row"])
def test_a_refused_checkpoint_may_be_mended_and_pruned_into_the_same_folder(name, tmp_path):
    pruner, sparsity = PRUNERS[name]
    tensors = tensors_of("bert", num_layers=2)
    wrong = "encoder.layer.1.output.dense.weight"
    broken = {**tensors, f"bert.{wrong}": torch.full((16, 40), float("nan"))}
    write(tmp_path / "dense", broken, num_shards=2)
    with pytest.raises(ValueError, match=f"weight '{wrong}' has 640 entries that are NaN or infinite"):
        prune_checkpoint(tmp_path / "dense", tmp_path / "out", pruner=pruner, sparsity=sparsity)
    assert not list((tmp_path / "out").iterdir())
    shutil.rmtree(tmp_path / "dense")
    dense = write(tmp_path / "dense", tensors, num_shards=2)
    prune_checkpoint(dense, tmp_path / "out", pruner=pruner, sparsity=sparsity)
    assert_pruned(dense, tmp_path / "out", in_memory(dense, pruner, sparsity))


def test_the_remedy_of_a_pattern_that_does_not_fit_works_in_the_same_folder(tmp_path):
    tensors = tensors_of("bert", num_layers=1)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] = torch.ones(40, 15)
    dense = write(tmp_path / "dense", tensors)
    with pytest.raises(ValueError, match="remainder: pad"):
        prune_checkpoint(dense, tmp_path / "out", pruner=PRUNERS["2:4"][0])
    padded = Pruner(Magnitude(), Global(), NM(2, 4, remainder="pad"))
    prune_checkpoint(dense, tmp_path / "out", pruner=padded)
    assert_pruned(dense, tmp_path / "out", in_memory(dense, padded))


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


# --- cut short since --------------------------------------------------------------------------------------------------


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", ["prune.json", "masks.safetensors", "model-00001-of-00002.safetensors", "config.json"])
def test_a_file_cut_short_is_told_and_all_is_written_again(name, share, tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=2), num_shards=2)
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    whole, record = tree(tmp_path / "out"), json.loads((tmp_path / "out/prune.json").read_text())
    cut(tmp_path / "out" / name, share)
    with pytest.warns(UserWarning, match=rf"out: {re.escape(name)} was cut short .* all is written again"):
        again = prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    assert tree(tmp_path / "out") == whole and not again.finished_before
    told = json.loads((tmp_path / "out/prune.json").read_text())
    assert told["asked"] == record["asked"] and told["result"]["num_pruned"] == record["result"]["num_pruned"]
    assert prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5).finished_before


def test_where_the_record_is_cut_short_the_masks_tell_whose_folder_it_is(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=1))
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    cut(tmp_path / "out/prune.json")
    before = tree(tmp_path / "out")
    with pytest.raises(ValueError, match=r"belongs to another prune \(requested: '3/5', there: '1/2'\)"):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.6)
    other = write(tmp_path / "other", {name: -each for name, each in tensors_of("bert", num_layers=1).items()})
    with pytest.raises(ValueError, match=r"belongs to another prune \(parent: "):
        prune_checkpoint(other, tmp_path / "out", pruner=OMP, sparsity=0.5)
    cut(tmp_path / "out/masks.safetensors")
    with pytest.raises(
        ValueError, match=r"prune\.json was cut short, so nobody knows whose it is: remove .*out and start"
    ):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)
    before.pop("masks.safetensors")
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before} == before


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


def test_another_choice_of_prunable_weights_is_another_prune(tmp_path):
    dense = write(tmp_path / "dense", tensors_of("bert", num_layers=2))
    fewer = Architecture.from_patterns(r"encoder\.layer\.(\d+)\.", ["output.dense"])
    prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5, architecture=fewer)
    with pytest.raises(ValueError, match=r"belongs to another prune \(architecture: "):
        prune_checkpoint(dense, tmp_path / "out", pruner=OMP, sparsity=0.5)


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
    (dense / "2_Dense").mkdir()  # its weights have the shard's name, and take little room
    (dense / "2_Dense/model.safetensors").write_bytes(b"1234")
    free = 2**20 + sum(len(content) for content in tree(dense).values())  # the masks are too much
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30 - free, free))
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
