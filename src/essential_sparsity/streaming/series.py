"""A checkpoint series: one pre-training's checkpoints by step, from a folder or the hub, one at a time into a trace."""

import contextlib
import fnmatch
import functools
import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.hub import asked
from essential_sparsity.pruning import Architecture, architecture_of, layer_of, prunable_names
from essential_sparsity.pruning.moments import measure
from essential_sparsity.streaming.journal import Journal, Shapes
from essential_sparsity.traces import keep_records, merge_records, write_record

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
PICKLED = "pytorch_model.bin"
HUB_FILES = ("*.safetensors", "*.safetensors.index.json", PICKLED, "config.json")
UNKNOWN = {"lr": None, "lr_sum": None, "decay_factor": None, "loss": None, "tokens": None, "seconds": None}

_AFTER_STEP = re.compile(r"(?:step|checkpoint|ckpt|iter)[-_=]?(\d+)([km]?)(?![\da-z])", re.IGNORECASE)
_AT_THE_END = re.compile(r"(\d+)([km]?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One checkpoint of a series: `status` is measured, duplicate or unreadable; `there` that a start before did it."""

    name: str
    step: int
    status: str = "found"
    digest: str = ""  # sha256 of the prunable weights: dtype, shape and bytes
    reason: str = ""
    there: bool = False


Fetch = Callable[[Entry], contextlib.AbstractContextManager[Path]]


@dataclass(frozen=True)
class Series:
    """Checkpoints by ascending step, and how each is opened; hub ones lie on this disk only while they are read.

    `states` tells by name when a checkpoint is another one: sizes and times of its files, or its commit.
    """

    source: str
    entries: tuple[Entry, ...]
    fetch: Fetch
    states: Mapping[str, str] = field(default_factory=dict)


def step_in(name: str) -> int | None:
    """Read the step from a checkpoint's name: 20000 from `step_20k`, 500 from `checkpoint-500`; None without one."""
    found = [*_AFTER_STEP.finditer(name)] or [*_AT_THE_END.finditer(name)]
    if not found:
        return None
    number, unit = found[-1].groups()
    return int(number) * {"": 1, "k": 1_000, "m": 1_000_000}[unit.lower()]


def find_series(source: str) -> Series:
    """Find a series: a folder of checkpoints named by step, or `owner/model@step*` on the hub (revisions by pattern).

    `owner/model-step_*k`, without @, takes repositories by pattern. Errors: FileNotFoundError for a folder that is not
    there, ValueError for fewer than two checkpoints, two of one step, or a hub that does not answer.
    """
    folder = Path(source).expanduser()
    is_hub = not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.*?\[\]-]+(@\S+)?", source)
    if is_hub and ("@" in source or "*" in source):
        states, fetch = _on_the_hub(source)
    elif folder.is_dir():
        states, fetch = _in_folder(folder)
    else:
        raise FileNotFoundError(
            f"checkpoints={source} is no folder: give one with checkpoints named by step, or a hub series as "
            "owner/model@step*"
        )
    entries = sorted((Entry(name, step) for name in states if (step := step_in(Path(name).stem)) is not None),
                     key=lambda entry: (entry.step, entry.name))  # fmt: skip
    if len(entries) < 2:
        some = ", ".join(sorted(states)[:4]) or "nothing"
        raise ValueError(
            f"checkpoints={source} holds {len(entries)} checkpoints named by step ({some}): names such as step_20k, "
            "step1000, checkpoint-500 are known"
        )
    for one, other in itertools.pairwise(entries):
        if one.step == other.step:
            raise ValueError(f"checkpoints {one.name} and {other.name} are both of step {one.step}: move one away")
    return Series(source, tuple(entries), fetch, states)


def _in_folder(folder: Path) -> tuple[dict[str, str], Fetch]:
    """Give the checkpoints of a folder, each with the sizes and times of its files, and say how one is opened."""
    found = [path for path in folder.iterdir() if path.is_dir() or path.suffix in ENDINGS]
    states = {path.name: _state(path) for path in found if not path.name.startswith(".")}
    return states, lambda entry: contextlib.nullcontext(folder / entry.name)


def _state(path: Path) -> str:
    """Tell a local checkpoint from another one in its place, by its files' names, sizes and times."""
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    told = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _on_the_hub(source: str) -> tuple[dict[str, str], Fetch]:
    """List a hub series, each checkpoint with its commit, and say how one is downloaded for as long as it is read."""
    from huggingface_hub import HfApi, snapshot_download

    repository, _, pattern = source.partition("@")
    remedy = "checkpoints=<folder of checkpoints>"
    if pattern:
        references = asked(
            lambda: HfApi().list_repo_refs(repository), what=f"checkpoints={source}: {repository}", remedy=remedy
        )
        found = (*references.branches, *references.tags)
        every = {reference.name: str(getattr(reference, "target_commit", None)) for reference in found}
    else:
        owner, _, pattern = repository.partition("/")
        search = pattern.split("*")[0]
        models = asked(
            lambda: list(HfApi().list_models(author=owner, search=search, full=True)),
            what=f"checkpoints={source}: {owner}",
            remedy=remedy,
        )
        every = {model.id.partition("/")[2]: str(getattr(model, "sha", None)) for model in models}
    states = {name: every[name] for name in fnmatch.filter(every, pattern)}

    @contextlib.contextmanager
    def fetch(entry: Entry) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            by_revision = "@" in source
            question = functools.partial(
                snapshot_download,
                repository if by_revision else f"{repository.partition('/')[0]}/{entry.name}",
                revision=entry.name if by_revision else None,
                local_dir=folder,
                allow_patterns=list(HUB_FILES),
            )
            asked(question, what=f"checkpoint {entry.name}", remedy=remedy)
            yield Path(folder)

    return states, fetch


# --- into a trace -----------------------------------------------------------------------------------------------------


def trace_series(
    series: Series,
    out: Path,
    *,
    architecture: Architecture | None = None,
    tell: Callable[[Entry], None] = lambda _: None,
) -> list[Entry]:
    """Measure every checkpoint, one at a time, and write `out/trace.parquet` and `out/moments.parquet`.

    Gives what became of each. What a start before that was ended had measured is not measured again, where checkpoint
    and method are the same. Checkpoints that cannot be read are skipped. Those with equal weights are all left out:
    nothing says which of them is what its name says. Raises ValueError for another architecture than the first one's,
    and where fewer than two checkpoints remain.
    """
    journal = Journal(out, series, architecture)
    keep_records(out, journal.steps())
    shapes: Shapes = {}
    first = ""
    done: list[Entry] = []
    for entry in series.entries:
        found, record = journal.shapes_of(entry), None
        if found is None:
            entry, found, record = _read(series, entry, architecture, shapes)
        else:
            entry = replace(entry, status="measured", digest=journal.digest_of(entry), there=True)
        if found is not None:
            first, shapes = first or entry.name, shapes or found
            if found != shapes:
                _refuse(entry.name, first, found, shapes)
        if record is not None:
            digest, counts, lines = record
            write_record(out, entry.step, counts, lines)
            entry = replace(entry, status="measured", digest=digest)
            journal.add(entry, shapes)
        done.append(entry)
        tell(entry)
    done = _without_duplicates(done)
    kept = {entry.step for entry in done if entry.status == "measured"}
    if len(kept) < 2:
        reasons = next((entry for entry in done if entry.reason), None)
        told = f" ({reasons.name}: {reasons.reason})" if reasons else ""
        raise ValueError(f"checkpoints={series.source} has {len(kept)} that can be used, a trace takes two{told}")
    merge_records(out, leave_out={entry.step for entry in done} - kept)
    shutil.rmtree(out / "trace")
    return done


Record = tuple[str, dict[str, np.ndarray], list[dict[str, Any]]]
"""The digest of a checkpoint's weights, and what its record holds: histograms and moments."""


def _read(
    series: Series, entry: Entry, architecture: Architecture | None, shapes: Shapes
) -> tuple[Entry, Shapes | None, Record | None]:
    """Open a checkpoint and measure it, unless its shapes are not the others'; say so where it cannot be read."""
    try:
        with series.fetch(entry) as path:
            opened = _Opened.at(path, architecture)
            found = opened.shapes()
            return entry, found, _measured(opened) if found == (shapes or found) else None
    except (OSError, ValueError, RuntimeError) as error:
        return replace(entry, status="unreadable", reason=str(error).splitlines()[0]), None, None


@dataclass(frozen=True, eq=False)
class _Opened:
    """A checkpoint's prunable weights by canonical name, not yet loaded."""

    stored: Checkpoint
    names: Mapping[str, str]
    architecture: Architecture

    @classmethod
    def at(cls, path: Path, architecture: Architecture | None) -> "_Opened":
        pickled = path / PICKLED
        stored = Checkpoint.open(pickled if pickled.is_file() and not any(path.glob("*.safetensors")) else path)
        architecture = architecture or architecture_of(stored)
        return cls(stored, prunable_names(stored, architecture), architecture)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.stored.shape(own) for name, own in self.names.items()}


def _measured(opened: _Opened) -> Record:
    """Measure one checkpoint weight by weight: the digest of its weights, and what its record holds."""
    digest = hashlib.sha256()
    counts: dict[str, np.ndarray] = {}
    lines: list[dict[str, Any]] = []
    for name, own in opened.names.items():
        weight = opened.stored[own]
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy().data)
        found = measure({name: weight})
        counts[name] = found.counts[0]
        kind = opened.architecture.kind(name)
        lines.append({"weight": name, "layer": layer_of(name), "kind": kind, **UNKNOWN, **found.moments(0)})
    return digest.hexdigest(), counts, lines


def _without_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    """Mark all checkpoints whose weights another one has as well."""
    times = Counter(entry.digest for entry in entries if entry.digest)
    marked = []
    for entry in entries:
        twins = [other.name for other in entries if other.digest == entry.digest and other is not entry]
        if times[entry.digest] > 1:
            entry = replace(entry, status="duplicate", reason=f"has the same weights as {', '.join(twins)}")
        marked.append(entry)
    return marked


def _refuse(name: str, first: str, found: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Raise ValueError naming what differs between two checkpoints' weights."""
    weight = next(key for key in (*shapes, *found) if shapes.get(key) != found.get(key))
    raise ValueError(
        f"checkpoint {name} is of another architecture than {first}: {weight} has shape {found.get(weight, 'none')} "
        f"there and {shapes.get(weight, 'none')} here; give one folder per model"
    )


def told(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Give the entries as change_points.json lists them."""
    return [asdict(entry) for entry in entries]
