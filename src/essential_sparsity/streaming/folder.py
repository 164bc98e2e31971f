"""The folder that a pruned checkpoint goes to: whose it is, what is there already, and whether the disk has room."""

import contextlib
import fcntl
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.runs import atomic_path, differences, read_json, write_json
from essential_sparsity.streaming.shards import temporary_of
from essential_sparsity.wholeness import is_whole

RECORD = "prune.json"
"""What was done, written last: its presence means that the folder is whole."""

JOURNAL = ".prune.json"
"""What is being done: there from the first byte to the last."""

MASKS = "masks.safetensors"
CARD, PARENT_CARD = "README.md", "README.parent.md"

EXPORTS = (".h5", ".msgpack", ".onnx", ".onnx_data", ".ot", ".gguf", ".npz", ".tflite")
"""Endings of the same weights in formats of other programs: dense ones have no place beside pruned ones."""

PICKLES = (".pt", ".pth", ".ckpt")

WEIGHTS = (".safetensors", ".bin", *PICKLES, *EXPORTS)
"""All endings of weights; in a folder below, .safetensors and .bin are further parts of the model, and come along."""

EXPORT_FOLDERS = ("coreml", "onnx", "openvino", "original")
"""Folders that hub repositories keep whole copies of the dense model in, for other programs."""

LEFT_BY_A_KILL = (f".{JOURNAL}.*.part", f".{MASKS}.part")
"""What a process may leave that was killed before its first journal was whole."""

_ROOM = 2**20
"""Bytes for the small files that are written beside weights and masks."""


def check_apart(checkpoint: Path, out: Path) -> None:
    """Refuse a folder that is the checkpoint's own or lies inside it: the dense weights would be lost."""
    source, target = checkpoint.resolve(), out.resolve()
    folder = source if source.is_dir() else source.parent
    if target in (folder, source):
        raise ValueError(f"out={out} is the checkpoint itself, which stays as it is: give another folder")
    if source.is_dir() and folder in target.parents:
        raise ValueError(f"out={out} lies inside the checkpoint {checkpoint}: give a folder beside it")
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file: give a folder")


@contextlib.contextmanager
def held(out: Path) -> Iterator[None]:
    """Hold the folder alone; the kernel frees it when the process ends, however that happens."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"out={out} is in use by another prune: wait for it, or end it first") from None
        yield
    finally:
        os.close(descriptor)


def read_record(out: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Give what another start of the same prune left: its record when it is whole, else its journal, else None.

    Raises ValueError where another prune or something else filled the folder: nothing in it is touched; also where a
    file was cut short that would tell.
    """
    for name in (RECORD, JOURNAL):
        if (out / name).is_file():
            if not is_whole(out / name):
                raise ValueError(
                    f"{out / name} was cut short, so nobody knows whose it is: remove {out} and start again"
                )
            content = read_json(out / name)
            if found := differences(asked, content.get("asked", {})):
                more = f" (and {len(found) - 2} more)" if len(found) > 2 else ""
                shown = "; ".join(found[:2])
                raise ValueError(f"out={out} belongs to another prune ({shown}{more}): give another folder")
            return content
    others = sorted(path.name for path in out.iterdir() if not any(map(path.match, LEFT_BY_A_KILL)))
    if others:
        raise ValueError(f"out={out} holds other files ({', '.join(others[:3])}): give a new or empty folder")
    return None


def has_cut_record(out: Path) -> bool:
    """Say whether a finished prune's record was cut short since, and its masks, which tell of it too, were not."""
    files = [out / RECORD, out / MASKS]
    return all(file.is_file() for file in files) and [is_whole(file) for file in files] == [False, True]


def check_masks(out: Path, asked: Mapping[str, str]) -> None:
    """Refuse a folder whose masks were made by another prune, as `read_record` does by the record."""
    there = Checkpoint.open(out / MASKS).metadata
    if found := differences(asked, {key: there[key] for key in (*asked, "requested", "parent") if key in there}):
        raise ValueError(f"out={out} belongs to another prune ({'; '.join(found[:2])}): give another folder")


def begin_anew(out: Path, asked: Mapping[str, Any], shards: Sequence[Path]) -> bool:
    """Drop weights and masks where a file was cut short since it was written: they are written again; say whether.

    A pruned shard is as long as the dense one. A warning names what was cut short.
    """
    broken = [path for path in out.glob("*") if path.is_file() and path.name[:1] != "." and not is_whole(path)]
    there = [(out / shard.name, shard) for shard in shards if (out / shard.name).is_file()]
    broken += [path for path, shard in there if path.stat().st_size != shard.stat().st_size]
    if broken:
        write_journal(out, {"asked": asked})  # before the record goes: the folder stays ours
        for path in [out / RECORD, *(path for path, _ in there), out / MASKS, temporary_of(out / MASKS), *broken]:
            path.unlink(missing_ok=True)
        names = ", ".join(dict.fromkeys(path.name for path in broken[:3]))
        warnings.warn(f"{out}: {names} was cut short (a full disk, a broken copy?): all is written again", stacklevel=3)
    return bool(broken)


def write_journal(out: Path, content: Mapping[str, Any]) -> None:
    """Remember what is being done and what was counted for it."""
    write_json(out / JOURNAL, content)


def finish(out: Path, content: Mapping[str, Any]) -> None:
    """Write the record, the sign that the folder is whole, and drop the journal and what killed processes left."""
    write_json(out / RECORD, content)
    for left in [out / JOURNAL, *out.glob(".*.part")]:
        left.unlink(missing_ok=True)


def check_room(out: Path, sizes: Mapping[str, int]) -> None:
    """Refuse to begin where the disk cannot hold the files of these sizes that are not there yet."""
    needed = _ROOM
    for name, size in sizes.items():
        path = out / name
        if not path.is_file():
            growing = temporary_of(path)
            needed += max(0, size - (growing.stat().st_blocks * 512 if growing.is_file() else 0))
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(
            f"out={out} needs {needed / 1e9:,.2f} GB and the disk has {free / 1e9:,.2f} GB free: "
            "make room, or give a folder on another disk"
        )


def other_files(checkpoint: Path, weight_files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """List a checkpoint folder's files beside its weights: (to copy, weights of another format to leave out).

    A checkpoint given as a file brings its index alone, where it is one of shards. Hidden files stay behind; of folders
    below, pickles and whole exports are left out, and further parts of the model (`2_Dense/`) come along.
    """
    if checkpoint.is_file():
        return ([checkpoint] if checkpoint not in weight_files else []), []
    copied, left_out = [], []
    for path in sorted(checkpoint.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(checkpoint).parts)
        inside = path.relative_to(checkpoint)
        if hidden or not path.is_file() or path in weight_files or inside.as_posix() == PARENT_CARD:
            continue
        endings = WEIGHTS if len(inside.parts) == 1 else (*PICKLES, *EXPORTS)
        dense = inside.suffix in endings or inside.parent.parts[:1] in [(name,) for name in EXPORT_FOLDERS]
        (left_out if dense or inside.name == RECORD else copied).append(path)
    return copied, left_out


def sizes(checkpoint: Path, files: Sequence[Path]) -> dict[str, int]:
    """Give the bytes of a checkpoint's files by their places in it."""
    root = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return {file.relative_to(root).as_posix(): file.stat().st_size for file in files}


def told(checkpoint: Path, left_out: Sequence[Path]) -> tuple[str, ...]:
    """Name files that are left out by their places in a checkpoint folder, an export folder once."""
    inside = [file.relative_to(checkpoint) for file in left_out]
    places = [f"{path.parts[0]}/" if path.parts[0] in EXPORT_FOLDERS else path.as_posix() for path in inside]
    return tuple(dict.fromkeys(places))


def copy_files(checkpoint: Path, files: Sequence[Path], out: Path) -> None:
    """Copy files to the places that they have in the checkpoint; its card makes way for ours under another name."""
    root = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for file in files:
        inside = file.relative_to(root)
        target = out / (PARENT_CARD if inside.as_posix() == CARD else inside)
        with atomic_path(target) as temporary:
            shutil.copyfile(file, temporary)
