"""Decoders as they are typed: pre-trained here, then perplexity and letters at each sparsity."""

import json

import pytest

from essential_sparsity.runs import read_runs


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Give the folder that keeps the one trained model for all tests."""
    return tmp_path_factory.mktemp("decoders") / "runs"


@pytest.fixture
def model(kept, command, tmp_path):
    """Give the model folder of a run of `train data=plain_text` at scale=tiny."""
    if not kept.is_dir():
        code, out, err = command("train backbone=opt_new data=plain_text scale=tiny save_model=true name=decoder")
        assert code == 0 and "perplexity" in out, out + err
        (tmp_path / "outputs/decoder-tiny").rename(kept)
    (run,) = read_runs(kept)
    assert run.metrics["metric"] == "perplexity" and run.metrics["split"] == "held_out"
    return run.path / "model"


def evaluated(command, tmp_path, model, words, name):
    code, out, err = command(
        f"evaluate backbone=opt_tiny backbone.path={model} sparsities=[0.0,0.5] name={name} {words}"
    )
    assert code == 0 and "2 computed" in out, out + err
    return {run.metrics["sparsity_requested"]: run for run in read_runs(tmp_path / "outputs" / name)}


def test_perplexity_of_what_was_pre_trained(model, command, tmp_path):
    levels = evaluated(command, tmp_path, model, "data=embedded_plain_text", "text")
    trained = json.loads((model.parent / "metrics.json").read_text())
    assert levels[0.0].metrics["value"] == pytest.approx(trained["value"], abs=1e-6)
    assert levels[0.5].metrics["value"] != levels[0.0].metrics["value"]


def test_letters_by_subject_and_category(model, command, tmp_path):
    levels = evaluated(command, tmp_path, model, "data=embedded_mmlu data.num_shots=2", "letters")
    found = levels[0.5].metrics["metrics"]
    assert {f"test/accuracy/category/{name}" for name in ("stem", "humanities", "social_science", "other")} <= set(
        found
    )
    assert levels[0.5].metrics["metric"] == "accuracy" and levels[0.5].metrics["num_rows"] == 96


def test_a_calibrated_pruner_needs_text_from_elsewhere(model, command, tmp_path):
    words = "evaluate backbone=opt_tiny data=embedded_mmlu sparsities=[0.5] pruner=wanda name=calibrated"
    code, _, err = command(f"{words} backbone.path={model}")
    assert code == 2 and "no training rows to calibrate on: pruner/calibration=plain_text" in err


def test_a_7b_model_s_command_runs_at_scale_tiny(command, tmp_path):
    code, out, err = command("evaluate backbone=vicuna_7b data=mmlu scale=tiny sparsities=[0.0,0.5]")
    assert code == 0 and "2 computed" in out, out + err
    assert {run.metrics["num_rows"] for run in read_runs(tmp_path / "outputs/evaluate-tiny")} == {96}


def test_questions_are_not_trained_on(command):
    code, _, err = command("train backbone=opt_tiny data=embedded_mmlu")
    assert code == 2 and "has rows to evaluate, none to train on: use essential-sparsity evaluate" in err


def test_lm_eval_brings_its_own_data(command, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    code, _, err = command("evaluate backbone=opt_tiny task=lm_eval task.tasks=[hellaswag]")
    assert code == 2 and "task=lm_eval needs lm-eval, an extra: pip install 'essential-sparsity[llm]'" in err
