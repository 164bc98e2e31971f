"""Masks of a sweep's pruners compared when it is reported: every level, all seeds and tasks of one model together."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from essential_sparsity.analysis.curves import level_of
from essential_sparsity.runs import RunRecord, atomic_path, read_runs

SAME_OR_CHANCE = ("random", "omp_matched", "lottery_reassigned")
"""Pruners whose masks are drawn by chance, or another's by construction."""


def compare_masks(folder: Path) -> bool:
    """Write `report/similarity.csv` where the newest run asks for it (`report.masks`); True where it is there.

    It is written once, and again when masks came that it does not know.
    """
    from essential_sparsity.similarity.named import LARGEST_COMPARISON, MASKS_FILE

    records = read_runs(folder)
    newest = max(records, key=lambda record: str(record.info.get("created") or ""), default=None)
    if newest is None or not (newest.config.get("report") or {}).get("masks"):
        return False
    groups: dict[Any, list[Path]] = defaultdict(list)
    for record in records:
        if _is_compared(record) and (record.path / MASKS_FILE).is_file():
            choices = record.info.get("choices") or {}
            groups[str(choices.get("backbone")), level_of(record)].append(record.path / MASKS_FILE)
    groups = {key: files for key, files in groups.items() if 1 < len(files) <= LARGEST_COMPARISON}
    out = folder / "report" / "similarity.csv"
    newest_masks = max((file.stat().st_mtime for files in groups.values() for file in files), default=0.0)
    if groups and not (out.is_file() and out.stat().st_mtime > newest_masks):
        _write([groups[key] for key in sorted(groups, key=str)], out)
    return out.is_file()


def _is_compared(record: RunRecord) -> bool:
    pruner = str((record.info.get("choices") or {}).get("pruner", ""))
    return record.finished and bool(level_of(record)) and not pruner.startswith(SAME_OR_CHANCE)


def _write(groups: list[list[Path]], out: Path) -> None:
    import pandas as pd

    from essential_sparsity.similarity import read_masks, similarity_table

    found = [read_masks(files) for files in groups]
    tables = [similarity_table(masks) for masks in found if len(masks) > 1]
    if tables:
        with atomic_path(out) as temporary:
            pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
