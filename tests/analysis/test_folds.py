"""Folds of a cross-validation are one run: its rows are those of all of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.analysis.synthetic_sweep import finish_run, open_run

from essential_sparsity.analysis import curves_from_runs
from essential_sparsity.analysis.folds import FoldedRun, pool_folds
from essential_sparsity.runs import read_runs

RIGHT = {0: [1, 1, 1, 0], 1: [0, 0, 1, 1], 2: [0, 0, 0, 1]}
"""Which rows of a fold are right."""


def run_fold(folder: Path, fold: int | None, *, sparsity: float = 0.0, seed: int = 0, finish: bool = True) -> Any:
    run = open_run(folder, sparsity=sparsity, seed=seed, data__fold=fold)
    right = np.array(RIGHT[fold or 0])
    rows = np.arange(4) * 3 + (fold or 0)
    splits = {"test": {"row": rows, "right": right, "parsed": right * 0 + 1, "exact": right, "guessed": right * 0}}
    if finish:
        finish_run(run, splits, sparsity=sparsity, metric="value_accuracy")
    return run


def test_the_value_of_a_cross_validation_is_that_of_all_its_rows(tmp_path: Path) -> None:
    for fold in RIGHT:
        for sparsity in (0.0, 0.5):
            run_fold(tmp_path, fold, sparsity=sparsity)
    (curve,) = curves_from_runs(read_runs(tmp_path))
    assert curve.num_rows == 12 and sorted(curve.row_ids) == list(range(12))
    assert list(curve.points["value"]) == [pytest.approx(6 / 12)] * 2
    assert curve.missing == () and "data.fold" not in curve.group


def test_a_setting_that_lacks_a_fold_is_not_finished(tmp_path: Path) -> None:
    for fold in RIGHT:
        run_fold(tmp_path, fold)
        run_fold(tmp_path, fold, sparsity=0.5, finish=fold != 1)
    (curve,) = curves_from_runs(read_runs(tmp_path))
    assert curve.levels == [0.0] and curve.num_rows == 12
    assert [gap["sparsity"] for gap in curve.missing] == [0.5]


def test_seeds_and_sparsities_are_no_folds(tmp_path: Path) -> None:
    for fold in (0, 1):
        for seed in (0, 1):
            run_fold(tmp_path, fold, seed=seed)
    pooled = pool_folds(read_runs(tmp_path))
    assert [len(record.folds) for record in pooled if isinstance(record, FoldedRun)] == [2, 2]
    assert {record.config["seed"] for record in pooled} == {0, 1}
    assert all(record.metrics["num_rows"] == 8 for record in pooled if record.metrics)


def test_runs_without_folds_and_a_single_fold_stay_as_they_are(tmp_path: Path) -> None:
    run_fold(tmp_path / "none", None)
    run_fold(tmp_path / "one", 2)
    for name in ("none", "one"):
        records = read_runs(tmp_path / name)
        assert pool_folds(records) == records
