"""Whether a file is whole: what a full disk, a broken copy or a torn sync leaves is told from what a run wrote."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

PARQUET = b"PAR1"
LONGEST_HEADER = 100_000_000
"""Bytes that a safetensors header may have, by its format."""

PARTS = ("checkpoints", "trace", "model", "model_at_*")
"""Folders of a run whose files are looked at, beside the run's own."""


def is_whole(path: Path) -> bool:
    """Say whether a file has its end: by the footer, header or closing bracket of its format; others count as whole.

    Reads a few bytes, but for JSON. Errors: OSError where it cannot be read.
    """
    check = _CHECKS.get(path.suffix)
    return check is None or check(path)


def cut_short(folder: Path) -> list[Path]:
    """List the files of a run folder that are not whole: its tables and masks, checkpoints, records and models."""
    files = (path for path in _files(folder) if path.suffix in _CHECKS and not path.name.startswith("."))
    return [path for path in files if not is_whole(path)]


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.glob("*") if path.is_file())
    for part in PARTS:
        yield from sorted(path for path in folder.glob(f"{part}/**/*") if path.is_file())


def _json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _parquet(path: Path) -> bool:
    size = path.stat().st_size
    if size < 12:
        return False
    with path.open("rb") as file:
        if file.read(4) != PARQUET:
            return False
        file.seek(-8, 2)
        end = file.read(8)
    return end[4:] == PARQUET and int.from_bytes(end[:4], "little") <= size - 12


def _safetensors(path: Path) -> bool:
    """Compare the file's size with what its header says: 8 bytes of length, the header, the last tensor's end."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if 0 < length <= LONGEST_HEADER else b""
    try:
        tensors = json.loads(header)
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _lines(path: Path) -> bool:
    """Say whether a text file's last line is ended."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read(1) == b"\n"


_CHECKS: dict[str, Callable[[Path], bool]] = {
    ".json": _json,
    ".parquet": _parquet,
    ".safetensors": _safetensors,
    ".ckpt": zipfile.is_zipfile,
    ".csv": _lines,
}
