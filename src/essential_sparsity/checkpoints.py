"""Any local checkpoint as a lazy mapping from names to tensors: safetensors (whole or shards), timm files, Lightning's.

Nothing is loaded before it is asked for: names, shapes and dtypes come from headers, tensors from memory-mapped files.
Pickles (.ckpt, .pt, .pth, .bin) are read with `weights_only=True` alone, so that no file can run code.
"""

import difflib
import hashlib
import json
import math
import pickle
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
}  # fmt: skip

_WEIGHT_FILES = ("model.safetensors.index.json", "model.safetensors")
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_NESTED = ("state_dict", "model")
_LARGEST_HEADER = 2**28


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, dtype and shape."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint by the names that its files use."""

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    _stored: Mapping[str, Stored]
    _opened: dict[Path, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | str) -> "Checkpoint":
        """Open a `save_pretrained` folder, a safetensors file, or a pickle of tensors (.ckpt, .pt, .pth, .bin).

        Raises FileNotFoundError for a missing file, ValueError naming a file that is cut short or holds no weights.
        """
        path = Path(path)
        files = _weight_files(path)
        if files[0].suffix in _PICKLES:
            tensors = _read_pickle(files[0])
            stored = {name: Stored(files[0], tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            return cls(path, files, {}, stored, {files[0]: tensors})
        stored, metadata = {}, {}
        for file in files:
            header = read_header(file)
            metadata |= header.pop("__metadata__", {})
            for name, entry in header.items():
                stored[name] = Stored(file, _dtype(file, name, entry["dtype"]), tuple(entry["shape"]))
        return cls(path, files, metadata, stored)

    def __getitem__(self, name: str) -> Tensor:
        """Load one tensor; raises KeyError with the nearest name where there is none."""
        file = self._entry(name).file
        if file.suffix in _PICKLES:
            return self._opened[file][name]
        if file not in self._opened:
            self._opened[file] = safe_open(file, framework="pt")
        return self._opened[file].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        """Go through the names as the files list them."""
        return iter(self._stored)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._stored)

    def __repr__(self) -> str:
        """Show where and how much, not the tensors."""
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors in {len(self.files)} files)"

    def names(self) -> list[str]:
        """List the tensors' names."""
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """Give a tensor's shape without loading it."""
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Give a tensor's dtype without loading it."""
        return self._entry(name).dtype

    def digest(self) -> str:
        """Give the sha256 of the weight files' bytes, by their names' order; remembered while they stay the same."""
        if len(self.files) == 1:
            return file_digest(self.files[0])
        parts = "".join(f"{file.name}:{file_digest(file)}\n" for file in sorted(self.files))
        return hashlib.sha256(parts.encode()).hexdigest()

    def _entry(self, name: str) -> Stored:
        if name not in self._stored:
            near = difflib.get_close_matches(name, self._stored, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise KeyError(f"{self.path} has no tensor {name!r}{hint}")
        return self._stored[name]


class Renamed(Mapping[str, Tensor]):
    """Tensors of a checkpoint under other names: own name → the checkpoint's; each is loaded when it is asked for."""

    def __init__(self, stored: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._stored, self._names = stored, names

    def __getitem__(self, name: str) -> Tensor:
        """Load one tensor."""
        return self._stored[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        """Go through the own names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._names)


_digests: dict[tuple[Path, int, int], str] = {}


def file_digest(file: Path | str) -> str:
    """Give the sha256 of a file's bytes; remembered in memory by path, size and time of change."""
    file = Path(file).resolve()
    state = file.stat()
    key = (file, state.st_size, state.st_mtime_ns)
    if key not in _digests:
        with file.open("rb") as stream:
            _digests[key] = hashlib.file_digest(stream, "sha256").hexdigest()
    return _digests[key]


def read_header(file: Path) -> dict[str, Any]:
    """Read a safetensors header and check that the file is whole: its entries, by name, and `__metadata__`.

    Raises ValueError naming a file that is cut short, too long or something else; no tensor is read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if length > _LARGEST_HEADER or prefix.startswith(b"version "):
            raise ValueError(f"{file} is no safetensors file (a Git LFS pointer?): fetch the weights themselves")
        text = stream.read(length)
    if len(prefix) < 8 or len(text) < length:
        raise ValueError(f"{file} is cut short: {size:,} bytes end inside its header; copy or download it again")
    header = _parsed(file, text)
    ends = [_checked(file, name, entry) for name, entry in header.items() if name != "__metadata__"]
    end = 8 + length + max(ends, default=0)
    if size != end:
        problem = "is cut short" if size < end else "is too long"
        raise ValueError(f"{file} {problem}: {size:,} bytes, its header says {end:,}; copy or download it again")
    return header


def _parsed(file: Path, text: bytes) -> dict[str, Any]:
    """Read a header's JSON: names → entries, and texts under `__metadata__`."""
    try:
        header = json.loads(text)
        readable = all(isinstance(value, str) for value in header.get("__metadata__", {}).values())
    except (ValueError, AttributeError, RecursionError):
        header, readable = {}, False
    if not readable:
        raise ValueError(f"{file} is no safetensors file: its header is unreadable; copy or download it again")
    return header


def _checked(file: Path, name: str, entry: Any) -> int:
    """Check that a header's entry says dtype, shape and place of one tensor, and that they agree; give its end."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (ValueError, KeyError, TypeError):
        whole, dtype, shape, begin, end = False, "", [], 0, 0
    if not whole:
        raise ValueError(f"{file} is no safetensors file: its entry {name!r} is unreadable; copy or download it again")
    if end - begin != math.prod(shape) * _dtype(file, name, dtype).itemsize:
        raise ValueError(
            f"{file}: tensor {name!r} of shape {shape} in {dtype} cannot take {end - begin:,} bytes; download it again"
        )
    return end


def _weight_files(path: Path) -> tuple[Path, ...]:
    """Find the files that hold a checkpoint's weights."""
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give a folder or a weight file")
    if path.is_dir():
        found = [path / name for name in _WEIGHT_FILES if (path / name).is_file()]
        if not found:
            others = sorted(p.name for p in path.iterdir() if p.suffix in (*_PICKLES, ".safetensors"))
            hint = f"name one of its files ({', '.join(others[:4])})" if others else "give what save_pretrained wrote"
            raise ValueError(f"checkpoint {path} holds no model.safetensors: {hint}")
        path = found[0]
    if path.name.endswith(".index.json"):
        return _shards(path)
    if path.suffix not in (*_PICKLES, ".safetensors"):
        known = ", ".join((".safetensors", *_PICKLES))
        raise ValueError(f"checkpoint {path} has the unknown ending {path.suffix!r}: known are {known}")
    return (path,)


def _shards(index: Path) -> tuple[Path, ...]:
    """List the shards that an index names, all of which must exist."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is no index of shards: it lacks weight_map; copy or download it again") from None
    files = tuple(index.parent / name for name in names)
    absent = [file.name for file in files if not file.is_file()]
    if absent or not files:
        raise FileNotFoundError(f"{index} names {len(absent)} missing shards ({', '.join(absent[:3])}): fetch them")
    return files


def _dtype(file: Path, name: str, text: Any) -> torch.dtype:
    if not isinstance(text, str) or text not in _DTYPES:
        raise ValueError(f"tensor {name!r} in {file} has the unknown dtype {text!r}: known are {', '.join(_DTYPES)}")
    return _DTYPES[text]


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Map a pickle's tensors by name without running code: a state dict, or one under `state_dict` or `model`."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120]
        raise ValueError(f"{file} cannot be read as weights alone ({reason}): save it as safetensors") from None
    tensors = {name: value for name, value in _nested(content).items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{file} holds no tensors by name: give a state dict or a Lightning checkpoint")
    return tensors


def _nested(content: Any) -> Mapping[str, Any]:
    """Find the state dict in what a pickle holds."""
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return cast(Mapping[str, Any], content[key])
    return content
