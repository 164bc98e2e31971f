"""Any local checkpoint reads as one lazy mapping, and a broken one is named at once."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from essential_sparsity.checkpoints import Checkpoint, file_digest


def _tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.randn(2, 3), "a.bias": torch.randn(2).bfloat16(), "steps": torch.tensor(3)}


def _assert_holds(checkpoint: Checkpoint, tensors: dict[str, Tensor]) -> None:
    assert sorted(checkpoint) == sorted(checkpoint.names()) == sorted(tensors)
    assert len(checkpoint) == len(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint[name], tensor)
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        checkpoint = Checkpoint.open(path)
        _assert_holds(checkpoint, tensors)
        assert checkpoint.metadata == {"format": "pt"}
    assert repr(Checkpoint.open(tmp_path)).endswith("3 tensors in 1 files)")


def _save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    names = list(tensors)
    weight_map = {name: f"model-{1 + index % 2:05d}-of-00002.safetensors" for index, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_of_shards(tmp_path: Path) -> None:
    tensors = _tensors()
    _save_shards(tmp_path, tensors)
    _assert_holds(Checkpoint.open(tmp_path), tensors)
    _assert_holds(Checkpoint.open(tmp_path / "model.safetensors.index.json"), tensors)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_pickles_of_tensors(tmp_path: Path, suffix: str, key: str | None) -> None:
    tensors = _tensors()
    content: Any = tensors if key is None else {key: tensors, "epoch": 3}
    torch.save(content, tmp_path / f"weights{suffix}")
    _assert_holds(Checkpoint.open(tmp_path / f"weights{suffix}"), tensors)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def test_a_pickle_never_runs_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": _tensors(), "bomb": _Bomb()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil.ckpt cannot be read as weights alone"):
        Checkpoint.open(tmp_path / "evil.ckpt")
    (tmp_path / "old.bin").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ValueError, match=r"old.bin cannot be read as weights alone"):
        Checkpoint.open(tmp_path / "old.bin")
    assert "code ran" not in capsys.readouterr().out


def test_digest_is_that_of_the_bytes_and_follows_changes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_tensors(), file)
    assert Checkpoint.open(tmp_path).digest() == hashlib.sha256(file.read_bytes()).hexdigest() == file_digest(file)
    save_file({"a": torch.ones(7)}, file)
    assert Checkpoint.open(tmp_path).digest() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_digest_of_shards_covers_each(tmp_path: Path) -> None:
    tensors = _tensors()
    _save_shards(tmp_path, tensors)
    before = Checkpoint.open(tmp_path).digest()
    assert before == Checkpoint.open(tmp_path).digest()
    tensors["steps"] = torch.tensor(4)
    _save_shards(tmp_path, tensors)
    assert Checkpoint.open(tmp_path).digest() != before


def _cut(size: int) -> Any:
    def make(folder: Path) -> Path:
        file = folder / "model.safetensors"
        save_file(_tensors(), file)
        file.write_bytes(file.read_bytes()[:size])
        return folder

    return make


def _written(name: str, content: bytes) -> Any:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _too_long(folder: Path) -> Path:
    save_file(_tensors(), folder / "model.safetensors")
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    return folder


def _shard_missing(folder: Path) -> Path:
    _save_shards(folder, _tensors())
    (folder / "model-00002-of-00002.safetensors").unlink()
    return folder


def _only_pickle(folder: Path) -> Path:
    torch.save(_tensors(), folder / "pytorch_model.bin")
    return folder


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_cut(-1), r"model.safetensors is cut short: \S+ bytes, its header says"),
        (_cut(40), "model.safetensors is cut short: 40 bytes end inside its header"),
        (_cut(3), "model.safetensors is cut short"),
        (_cut(0), "model.safetensors is cut short"),
        (_too_long, "model.safetensors is too long"),
        (_written("model.safetensors", POINTER), "is no safetensors file .a Git LFS pointer"),
        (_written("w.safetensors", b"\x02" + b"\0" * 7 + b"hi"), "its header is unreadable"),
        (_written("w.safetensors", b"\x02" + b"\0" * 7 + b"[]"), "its header is unreadable"),
        (_written("w.npz", b"hello"), "unknown ending '.npz'"),
        (_written("w.pt", b"hello"), "w.pt cannot be read as weights alone"),
        (_written("model.safetensors.index.json", b"{}"), "is no index of shards"),
        (_shard_missing, "names 1 missing shards .model-00002-of-00002.safetensors"),
        (_only_pickle, "holds no model.safetensors: name one of its files .pytorch_model.bin"),
        (lambda folder: folder, "holds no model.safetensors: give what save_pretrained wrote"),
        (lambda folder: folder / "absent", "absent does not exist: give a folder or a weight file"),
    ],
)
def test_broken_checkpoints_are_named_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        Checkpoint.open(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        Checkpoint.open(tmp_path / "empty.ckpt")


def test_an_unknown_name_brings_the_nearest(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    with pytest.raises(KeyError, match=r"has no tensor 'a.wieght': did you mean 'a.weight'\?"):
        Checkpoint.open(tmp_path)["a.wieght"]


@pytest.mark.real
def test_a_real_checkpoint_ranks_without_its_model(es_models: Path) -> None:
    from transformers import AutoModel

    from essential_sparsity.pruning import Pruner, prunable_names, prunable_weights

    folder = es_models / "all-MiniLM-L6-v2"
    checkpoint = Checkpoint.open(folder)
    weights = {canonical: checkpoint[name] for canonical, name in prunable_names(checkpoint).items()}
    model = prunable_weights(AutoModel.from_pretrained(folder, dtype=torch.float32))
    masks = Pruner()(weights, sparsity=0.5)
    assert list(masks) == list(model)
    assert checkpoint.dtype(checkpoint.names()[0]) in (torch.float32, torch.float16, torch.int64)
    if {weight.dtype for weight in weights.values()} == {torch.float32}:
        assert masks.digest() == Pruner()(model, sparsity=0.5).digest()
