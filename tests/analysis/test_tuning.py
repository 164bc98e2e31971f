"""Tuned recipes: chosen on even rows, told on odd ones, all seeds of a level together."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.analysis.synthetic_sweep import falls_early, falls_late, finish_run, open_run, predictions_of

from essential_sparsity.analysis import curves_from_runs
from essential_sparsity.analysis.reliability import calibration_error
from essential_sparsity.analysis.tuning import choose_tuned, factors_of, is_even, recipe_words
from essential_sparsity.runs import read_runs


def write_recipes(folder: Path, *, seeds=(0, 1), levels=(0.0, 0.4), skip=()) -> None:
    """Two recipes per level and seed: the faster one is better where weights are gone, worse in dense runs."""
    for lr, truth in ((1.0, falls_early), (2.5, falls_late)):
        for level in levels:
            for seed in seeds:
                if (lr, level, seed) in skip:
                    continue
                changes = {"optimizer__lr": 2e-5 * lr, "trainer__max_epochs": 3}
                run = open_run(folder, sparsity=level, seed=seed, **changes)
                if lr != 1:
                    info = json.loads((run.path / "run.json").read_text())
                    (run.path / "run.json").write_text(json.dumps({**info, "tuning": {"lr": lr, "epochs": 1}}))
                accuracy = truth(level) if level else 0.85 - (0.1 if lr > 1 else 0)
                rows = predictions_of(accuracy, seed=seed, level=level, num_rows=801)
                finish_run(run, {"validation": rows}, sparsity=level)


def test_each_level_has_the_recipe_that_is_best_on_even_rows(tmp_path):
    write_recipes(tmp_path)
    chosen = choose_tuned(read_runs(tmp_path))
    told = {(r.config["sparsity"], r.config["seed"]): r.metrics["recipe"] for r in chosen if r.metrics}
    assert told == {(0.0, 0): "as it is", (0.0, 1): "as it is", (0.4, 0): "lr × 2.5", (0.4, 1): "lr × 2.5"}


def test_the_value_comes_from_the_rows_that_did_not_choose(tmp_path):
    write_recipes(tmp_path)
    (curve,) = curves_from_runs(read_runs(tmp_path))
    assert curve.num_rows == 400 and (curve.row_ids % 2 == 1).all() and curve.about["recipe"] == "tuned"
    for record in choose_tuned(read_runs(tmp_path)):
        table = record.predictions().to_pandas()
        assert record.metrics and record.metrics["value"] == np.mean(table["label"] == table["prediction"])


def test_runs_that_no_factor_was_put_to_stay_as_they_are(tmp_path):
    run = open_run(tmp_path, sparsity=0.0, seed=0)
    finish_run(run, {"validation": predictions_of(0.8, seed=0, level=0, num_rows=50)}, sparsity=0.0)
    (record,) = read_runs(tmp_path)
    assert choose_tuned([record]) == [record] and factors_of(record) == (1, 1)
    assert recipe_words((2.5, 2)) == "lr × 2.5, epochs × 2"


def test_a_recipe_that_lacks_a_seed_is_not_chosen(tmp_path):
    write_recipes(tmp_path, skip={(2.5, 0.4, 1)})
    found = [r.metrics["recipe"] for r in choose_tuned(read_runs(tmp_path)) if r.metrics and r.config["sparsity"]]
    assert found == ["as it is", "as it is"]


def test_halves_are_taken_in_each_split():
    split, row = np.array(["a"] * 4 + ["b"] * 2), np.array([7, 9, 20, 21, 9, 7])
    assert is_even(split, row).tolist() == [True, False, True, False, False, True]


def test_calibration_error_is_torchmetrics_own():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    logits = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 2
    label = torch.randint(3, (500,), generator=torch.Generator().manual_seed(1))
    confidence, prediction = logits.softmax(-1).max(-1)
    expected = float(multiclass_calibration_error(logits.softmax(-1), label, num_classes=3, n_bins=15, norm="l1"))
    assert calibration_error(confidence.numpy(), (prediction == label).numpy()) == pytest.approx(expected, abs=1e-6)


def test_logits_are_no_confidence():
    with pytest.raises(ValueError, match=r"confidence=2 lies outside \[0, 1\]"):
        calibration_error(np.array([2.0]), np.array([1]))
    with pytest.raises(ValueError, match="give one each"):
        calibration_error(np.array([]), np.array([]))
