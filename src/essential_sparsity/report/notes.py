"""What a report says of its runs as a whole: some left out, several versions of the code, the disk that all takes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from essential_sparsity.runs import RUN_FORMAT, RunRecord, disk_use, other_formats


def notes_of(folder: Path, records: Sequence[RunRecord]) -> list[str]:
    """Give the sentences that stand over a report of a folder's runs and parents."""
    return [note for note in (left_out(folder), mixed_versions(records)) if note]


def left_out(folder: Path) -> str:
    """Say how many runs were written in another run format, which are not read; empty without any."""
    counts = Counter(other_formats(folder))
    if not counts:
        return ""
    told = ", ".join(f"{_runs(number)} of run format {there}" for there, number in sorted(counts.items(), key=str))
    return f"{told} left out, this version reads run format {RUN_FORMAT}: compute them again under another name="


def mixed_versions(records: Sequence[RunRecord]) -> str:
    """Name the versions that made finished runs, by what differs between them, and how many each made; else empty."""
    told = [_versions(record) for record in records if record.finished]
    keys = [key for key in dict.fromkeys(key for each in told for key in each) if _differs(key, told)]
    counts = Counter(", ".join(f"{key} {each.get(key) or 'not recorded'}" for key in keys) for each in told)
    if len(counts) < 2:
        return ""
    shown = "; ".join(f"{text} ({_runs(number)})" for text, number in counts.most_common())
    return f"{len(counts)} versions made these runs: {shown}"


def _versions(record: RunRecord) -> dict[str, Any]:
    return {"git": record.info.get("git"), **(record.info.get("versions") or {})}


def _differs(key: str, told: Sequence[Mapping[str, Any]]) -> bool:
    return len({each.get(key) for each in told}) > 1


def _runs(number: int) -> str:
    return f"{number:,} run" + ("" if number == 1 else "s")


def disk_told(folder: Path) -> str:
    """Say how much disk an experiment takes, and what of it are models and checkpoints to go on from."""
    parts = disk_use(folder)
    words = {"models": "saved models", "checkpoints": "checkpoints of unfinished runs, or kept ones"}
    of_them = [f"{amount(parts[key])} of it {text}" for key, text in words.items() if parts[key]]
    return ", ".join([amount(sum(parts.values())), *of_them])


def amount(num_bytes: int) -> str:
    """Give bytes in the largest unit that leaves a number of at least 1."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
