"""Experiments' own questions: pruning after fine-tuning, tickets from elsewhere, tuned recipes, untrained controls."""

import json

import numpy as np
import pytest
from tests.apps.sweep_points import completed

from essential_sparsity.runs import read_runs

TINY = "scale=tiny seed=0"


def value_of(record):
    return np.asarray(record.predictions().to_pandas()["prediction"])


def test_pruning_next_to_nothing_after_fine_tuning_is_the_dense_run(command, tmp_path):
    words = "train backbone=vit_tiny data=digits trainer.max_epochs=1 seed=0 name=after"
    assert command(f"{words} sparsity=0.0")[0] == 0
    code, out, err = command(f"{words} pruner=after_fine_tuning sparsity=0.00001")
    assert code == 0, out + err
    dense, late = sorted(read_runs(tmp_path / "outputs/after"), key=lambda r: r.metrics["sparsity"])
    assert (dense.metrics["steps"] > 0, late.metrics["steps"]) == (True, 0)
    assert 0 < late.metrics["num_pruned"] < 10 and (value_of(dense) == value_of(late)).mean() > 0.99
    assert late.metrics["metrics"]["train/loss"] is None


def test_further_training_is_a_share_of_the_training_before(command, tmp_path):
    words = "train backbone=vit_tiny data=digits trainer.max_epochs=2 seed=0 name=after sparsity=0.5"
    code, out, err = command(f"{words} pruner=after_fine_tuning pruner.further=0.5")
    assert code == 0, out + err
    (late,) = read_runs(tmp_path / "outputs/after")
    (before,) = [r for r in read_runs(tmp_path / "outputs/after", include_parents=True) if r.path != late.path]
    assert late.metrics["steps"] * 2 == before.metrics["steps"] and before.metrics["seed"] == 0


def test_a_task_with_weights_of_its_own_is_not_pruned_after_fine_tuning(command):
    words = "train backbone=bert_tiny data=embedded_arithmetic trainer.max_steps=1 seed=0"
    code, _, err = command(f"{words} pruner=after_fine_tuning sparsity=0.5")
    assert code == 2 and "has weights of its own" in err and "prune before fine-tuning" in err


def test_a_ticket_from_elsewhere_is_found_there_and_trained_here():
    words = ["data=squad", "task=question_answering", "pruner=lottery_elsewhere", "pruner.found_on=sst2"]
    config = completed("mask_transfer", *words, "sparsity=0.2", "seed=1")
    assert config["data"]["_target_"].endswith("Squad") and config["optimizer"]["lr"] == 3e-5
    rounds = []
    parent = config["parent"]
    while parent:
        rounds.append(parent)
        parent = parent["parent"]
    assert [each["sparsity"] for each in rounds] == [0.1, 0.0]
    for each in rounds:
        assert each["data"]["subset"] == "sst2" and each["seed"] == 1001 and each["role"] == "round"
        assert each["task"]["_target_"].endswith("SequenceClassification")
        assert each["trainer"]["max_epochs"] == 5
    assert "search" not in config


def test_a_search_that_nobody_named_is_told(command):
    words = "experiment=mask_transfer scale=tiny pruner=lottery_elsewhere pruner.found_on=sst sparsity=0.5 seed=0"
    code, out, _ = command(f"train {words} data=glue task=sequence_classification data.subset=mnli")
    assert code == 1 and "pruner.found_on=sst is no search that the configuration names: did you mean 'sst2'?" in out


def test_tuned_needs_a_sweep(command):
    code, _, err = command("train backbone=vit_tiny data=digits tuned=true seed=0")
    assert code == 2 and "tuned=true chooses among several runs: add -m" in err


def test_factors_multiply_rate_and_epochs_of_the_run_alone():
    plain = completed("lottery_vs_omp_bert", "pruner=lottery", "sparsity=0.1")
    tuned = completed("lottery_vs_omp_bert", "pruner=lottery", "sparsity=0.1", "tuning.lr=2.5", "tuning.epochs=2")
    assert tuned["optimizer"]["lr"] == 2.5 * plain["optimizer"]["lr"]
    assert tuned["trainer"]["max_epochs"] == 2 * plain["trainer"]["max_epochs"]
    assert tuned["parent"] == plain["parent"] and "tuning" not in tuned


def test_a_factor_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"tuning\.lr=0 is not above 0: give a factor such as 2"):
        completed("essential_sparsity_bert_glue", "tuning.lr=0")


def test_a_tuned_sweep_says_which_recipe_each_level_has(command, tmp_path):
    words = "train -m backbone=vit_tiny data=digits trainer.max_epochs=1 tuned=true name=tuned seed=0 sparsity=0.0,0.5"
    code, out, err = command([*words.split(), "axes.tuning={lr: '1,5', epochs: '1'}"])
    assert code == 0 and "4 points: 4 computed" in out, out + err
    page = (tmp_path / "outputs/tuned/report/index.html").read_text()
    assert "chosen on the other half of the evaluation rows" in page and "fixed recipe" not in page
    (entry,) = json.loads((tmp_path / "outputs/tuned/report/essential_sparsity.json").read_text())
    assert entry["num_rows"] == 225 and all(level["recipe"] for level in entry["levels"])


def test_an_untrained_arm_stays_untrained_at_scale_tiny():
    assert (
        completed("does_pretraining_matter", "backbone.pretrained=false", "scale=tiny")["backbone"]["pretrained"]
        is False
    )
    assert completed("does_pretraining_matter", "scale=tiny")["backbone"]["pretrained"] is True


def test_a_plan_for_another_machine(command):
    words = "train experiment=essential_sparsity_vit scale=tiny sparsity=0.5 seed=0"
    code, out, err = command(f"{words} plan=4e14")
    assert code == 0 and "a machine of 4e+14 operations per second" in out, out + err
    code, out, err = command(f"{words} plan=3")
    assert "plan=3 is no number of operations per second" in out + err


def test_a_plan_of_a_curve_without_training(command, tmp_path):
    code, out, err = command("evaluate experiment=figure_11 scale=tiny plan=true")
    assert code == 0 and "15 of 15 points to compute" in out, out + err
    page = (tmp_path / "outputs/figure_11-tiny/plan/index.html").read_text()
    assert "What each setting costs" in page and not list((tmp_path / "outputs").glob("*/*/run.json"))
