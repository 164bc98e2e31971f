"""What a sweep left, without what may differ between two starts: times, and how often it went on."""

import csv
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

MAY_DIFFER = ("seconds", "hours", "created", "resumed", "passes", "there", "disk")
"""Keys that tell of one start: how long it took, and what it found there."""

OF_A_RUN = ("config", "inputs", "parent", "run_format", "id")
"""What run.json says of the run; versions and times are of the start."""


def left(folder: Path) -> dict[str, str]:
    """Give place → digest of everything that commands computed below a folder: runs, models, traces, reports."""
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_file() and ".hydra" not in place.parts and "log" not in place.parts:
            content = _content(path)
            if content is not None:
                found[str(place)] = hashlib.sha256(content).hexdigest()[:16]
    return found


def metrics(folder: Path) -> dict[str, bytes]:
    """Give place → bytes of every metrics.json: computed twice, its seconds differ."""
    return {str(path.parent.relative_to(folder)): path.read_bytes() for path in folder.rglob("metrics.json")}


def _content(path: Path) -> bytes | None:
    if path.name.endswith(".part") and "report" not in path.parts and path.parent.name != "outputs":
        return b"left over"
    if path.name.startswith("."):
        return None
    if path.suffix == ".csv":
        with path.open(newline="") as lines:
            return _json([_lasting(row) for row in csv.DictReader(lines)])
    if path.suffix == ".safetensors":
        return path.read_bytes()
    if path.name == "run.json":
        return _json({key: value for key, value in json.loads(path.read_text()).items() if key in OF_A_RUN})
    if path.suffix == ".json":
        return _json(_lasting(json.loads(path.read_text())))
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        kept = [name for name in table.column_names if name not in MAY_DIFFER]
        return repr(table.select(kept).to_pydict()).encode()
    return None


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _lasting(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _lasting(value) for key, value in content.items() if key not in MAY_DIFFER}
    return [_lasting(item) for item in content] if isinstance(content, list) else content


def differences(calm: Mapping[str, str], rough: Mapping[str, str]) -> dict[str, list[str]]:
    """Name what was lost, what is there too much, and what differs from the undisturbed sweep."""
    return {
        "lost": sorted(calm.keys() - rough.keys()),
        "doubled": sorted(rough.keys() - calm.keys()),
        "different": sorted(place for place in calm.keys() & rough.keys() if calm[place] != rough[place]),
    }
