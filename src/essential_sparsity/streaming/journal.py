"""What a trace of a checkpoint series has measured so far: a killed one goes on with the next checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from essential_sparsity import checkpoints, traces
from essential_sparsity.inputs import digest_of, file_digest
from essential_sparsity.pruning import Architecture, architecture, histogram, moments
from essential_sparsity.runs import read_json, write_json
from essential_sparsity.traces import whole_steps
from essential_sparsity.wholeness import is_whole

if TYPE_CHECKING:
    from essential_sparsity.streaming.series import Entry, Series

MEASURING = (architecture, histogram, moments, checkpoints, traces)
"""Modules that decide what is measured of a checkpoint and how it is written: changed ones measure again."""

Shapes = Mapping[str, tuple[int, ...]]
"""Of all weights that are measured, by name."""


class Journal:
    """`trace/series.json`: by checkpoint its step, state, digest of weights and shapes, written behind its record.

    A journal of another series, architecture or code counts for nothing, and neither does a record that is not whole.
    """

    def __init__(self, out: Path, series: "Series", chosen: Architecture | None) -> None:
        self.path, self.states = out / "trace" / "series.json", series.states
        self.of = {"source": series.source, "architecture": digest_of(repr(chosen)), "code": code()}
        self.entries: dict[str, dict[str, Any]] = {}
        self.shapes: dict[str, dict[str, tuple[int, ...]]] = {}  # by digest: those of most entries are the same
        if self.path.is_file() and is_whole(self.path):
            self._read(out, {entry.name: entry.step for entry in series.entries})

    def _read(self, out: Path, steps: Mapping[str, int]) -> None:
        """Take in what still holds: checkpoints as they were then, at the same step, with whole records."""
        content, whole = read_json(self.path), whole_steps(out)
        if content.get("of") != self.of:
            return
        for name, each in content["entries"].items():
            same = each["step"] == steps.get(name) and each["state"] == self.states.get(name)
            if same and each["step"] in whole:
                self.entries[name] = each
        for digest, shapes in content["shapes"].items():
            self.shapes[digest] = {name: tuple(shape) for name, shape in shapes.items()}

    def steps(self) -> set[int]:
        """Give the steps whose records count."""
        return {int(each["step"]) for each in self.entries.values()}

    def shapes_of(self, entry: "Entry") -> Shapes | None:
        """Give the shapes of a checkpoint that was measured before; None where it is to be measured (again)."""
        told = self.entries.get(entry.name)
        return None if told is None else self.shapes[told["shapes"]]

    def digest_of(self, entry: "Entry") -> str:
        """Give the digest of the weights of a checkpoint that was measured before."""
        return str(self.entries[entry.name]["digest"])

    def add(self, entry: "Entry", shapes: Shapes) -> None:
        """Remember that a checkpoint's record is whole."""
        digest = digest_of(json.dumps({**shapes}))
        self.shapes[digest] = {**shapes}
        told = {"step": entry.step, "state": self.states.get(entry.name), "digest": entry.digest, "shapes": digest}
        self.entries[entry.name] = told
        write_json(self.path, {"of": self.of, "entries": self.entries, "shapes": self.shapes})


def code() -> str:
    """Give a hash of the code that measures."""
    return digest_of(*(file_digest(str(module.__file__)) for module in MEASURING))
