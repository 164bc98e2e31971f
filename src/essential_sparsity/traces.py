"""Trace files: magnitude histograms and moments of every prunable weight: a pair of files per record, merged at last.

The only reader and writer of `trace/step=00001000.parquet`, `trace/moments=00001000.parquet`, `trace.parquet` and
`moments.parquet` in a run folder (or a checkpoint series' folder).
"""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from essential_sparsity.runs import atomic_path, read_table
from essential_sparsity.wholeness import is_whole

CODE = "bfloat16"
"""Kind of code that trace bins are the upper 14 bits of: that of fp32 and bf16 magnitudes."""

BITS = 14

MERGED = ("trace.parquet", "moments.parquet")

_METADATA = {"code": CODE, "bits": str(BITS)}
_NAMES = pa.dictionary(pa.int32(), pa.string())
HISTOGRAMS = pa.schema(
    [("step", pa.int32()), ("weight", _NAMES), ("bin", pa.uint16()), ("count", pa.uint32())], metadata=_METADATA
)
MOMENTS = pa.schema([
    ("step", pa.int32()), ("weight", _NAMES), ("layer", pa.int32()), ("kind", _NAMES),
    ("num", pa.int64()), ("num_zeros", pa.int64()),
    *((name, pa.float64()) for name in ("sum", "sum_squares", "sum_fourths", "largest")),
    *((name, pa.float64()) for name in ("lr", "lr_sum", "decay_factor", "loss")),
    ("tokens", pa.int64()), ("seconds", pa.float64()),
], metadata=_METADATA)  # fmt: skip

_SMALL = {"compression": "zstd", "compression_level": 9, "write_statistics": False}
_HISTOGRAM_OPTIONS: dict[str, Any] = {
    **_SMALL,
    "use_dictionary": ["step", "weight"],
    "column_encoding": {"bin": "DELTA_BINARY_PACKED", "count": "DELTA_BINARY_PACKED"},
}
_MOMENTS_OPTIONS: dict[str, Any] = {**_SMALL, "use_dictionary": ["weight", "kind"]}


def write_record(
    folder: Path, step: int, counts: Mapping[str, np.ndarray], moments: Sequence[Mapping[str, Any]]
) -> None:
    """Write one record, each file whole or not at all; the same step written again replaces it.

    `counts` maps weights, in the fixed order, to integers [2^14]; `moments` has one mapping per weight. The histogram
    is written last: a record is there when its histogram is.
    """
    names = list(counts)
    bins = {name: np.flatnonzero(counts[name]) for name in names}
    owners = np.repeat(np.arange(len(names), dtype=np.int32), [len(bins[name]) for name in names])
    columns = [
        pa.array(np.full(len(owners), step, np.int32)),
        pa.DictionaryArray.from_arrays(pa.array(owners), pa.array(names, pa.string())),
        pa.array(np.concatenate([bins[name] for name in names] or [[]]).astype(np.uint16)),
        pa.array(np.concatenate([counts[name][bins[name]] for name in names] or [[]]).astype(np.uint32)),
    ]
    lines = [{"step": step, **line} for line in moments]
    with atomic_path(_moments_file(folder, step)) as temporary:
        _write_moments(pa.Table.from_pylist(lines, schema=MOMENTS), temporary)
    with atomic_path(_histogram_file(folder, step)) as temporary, _histogram_writer(temporary) as writer:
        writer.write_table(pa.Table.from_arrays(columns, schema=HISTOGRAMS))


def recorded_steps(folder: Path) -> list[int]:
    """List the steps whose records lie in `folder/trace`, ascending."""
    found = (re.fullmatch(r"step=(\d+)\.parquet", path.name) for path in (folder / "trace").glob("step=*.parquet"))
    return sorted(int(match.group(1)) for match in found if match)


def drop_records(folder: Path, *, after: int) -> None:
    """Remove records of later steps than `after`, and what was merged with them: of a training that was ended."""
    keep_records(folder, [step for step in recorded_steps(folder) if step <= after])


def whole_steps(folder: Path) -> set[int]:
    """Give the recorded steps of which no file was cut short."""
    files = {step: (_histogram_file(folder, step), _moments_file(folder, step)) for step in recorded_steps(folder)}
    return {step for step, both in files.items() if all(file.is_file() and is_whole(file) for file in both)}


def keep_records(folder: Path, steps: Collection[int]) -> None:
    """Remove all records but those of some steps, and what was merged."""
    for name in MERGED:
        (folder / name).unlink(missing_ok=True)
    for step in recorded_steps(folder):
        if step not in steps:
            _histogram_file(folder, step).unlink(missing_ok=True)
            _moments_file(folder, step).unlink(missing_ok=True)


def merge_records(folder: Path, *, leave_out: Collection[int] = ()) -> None:
    """Write `trace.parquet` and `moments.parquet` from the records, in the order of steps, a row group per record."""
    steps = [step for step in recorded_steps(folder) if step not in leave_out]
    with atomic_path(folder / "moments.parquet") as temporary:
        tables = [pq.read_table(_moments_file(folder, step), schema=MOMENTS) for step in steps]
        _write_moments(pa.concat_tables(tables).unify_dictionaries(), temporary)
    with atomic_path(folder / "trace.parquet") as temporary, _histogram_writer(temporary) as writer:
        for step in steps:
            writer.write_table(pq.read_table(_histogram_file(folder, step), schema=HISTOGRAMS))


def has_trace(folder: Path) -> bool:
    """Say whether a folder holds a trace, merged or not."""
    return all((folder / name).is_file() for name in MERGED) or bool(recorded_steps(folder))


def read_trace(folder: Path | str) -> tuple[pa.Table, pa.Table]:
    """Read histograms and moments of a run: the merged tables, or what an unfinished run has recorded so far.

    Raises FileNotFoundError where nothing was recorded, ValueError for histograms of another code.
    """
    folder = Path(folder)
    merged = [folder / name for name in MERGED]
    if all(path.is_file() for path in merged):
        found = [read_table(path, schema) for path, schema in zip(merged, (HISTOGRAMS, MOMENTS), strict=True)]
    elif steps := recorded_steps(folder):
        files = [[name(folder, step) for step in steps] for name in (_histogram_file, _moments_file)]
        found = [pa.concat_tables([read_table(path) for path in each]).unify_dictionaries() for each in files]
    else:
        raise FileNotFoundError(
            f"{folder} has no trace: record one with callbacks=recorder, or essential-sparsity trace"
        )
    code = (found[0].schema.metadata or {}).get(b"code", b"").decode()
    if code != CODE:
        raise ValueError(f"{folder} has a trace of {code or 'unknown'} codes, known are {CODE}: record it again")
    return found[0], found[1]


def _histogram_file(folder: Path, step: int) -> Path:
    return folder / "trace" / f"step={step:08d}.parquet"


def _moments_file(folder: Path, step: int) -> Path:
    return folder / "trace" / f"moments={step:08d}.parquet"


def _write_moments(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, **_MOMENTS_OPTIONS)


@contextlib.contextmanager
def _histogram_writer(path: Path) -> Iterator[pq.ParquetWriter]:
    with pq.ParquetWriter(path, HISTOGRAMS, **_HISTOGRAM_OPTIONS) as writer:
        yield writer
