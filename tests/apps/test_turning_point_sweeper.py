"""The sweeper that finds the turn: what a user types, what is computed, what is told."""

import json

import pytest

from essential_sparsity.runs import read_runs

SEARCH = (
    "hydra/sweeper=turning_point name=s trainer.max_steps=20 optimizer.lr=3e-3 report.epsilon=0.05 seed=0,1 "
    "hydra.sweeper.tolerance=0.1 hydra.sweeper.budget=10"
)
SOON = "train hydra/sweeper=turning_point backbone=vit_tiny data=digits name=s trainer.max_steps=2"


def turning_points(folder):
    return json.loads((folder / "report" / "turning_point.json").read_text())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Give the folder that keeps the one trained model for all tests."""
    return tmp_path_factory.mktemp("kept") / "dense"


@pytest.fixture
def model(kept, command, tmp_path):
    """Give the words that name a fine-tuned model and its data."""
    if not kept.is_dir():
        words = "train backbone=vit_tiny data=digits name=dense trainer.max_epochs=5 optimizer.lr=3e-3 save_model=true"
        assert command(words)[0] == 0
        (tmp_path / "outputs/dense").rename(kept)
    (record,) = read_runs(kept)
    return f"backbone=vit_tiny backbone.path={record.path / 'model'} backbone.pretrained=true data=digits"


@pytest.fixture
def evaluate(model):
    """Give the words that evaluate it."""
    return f"evaluate {model}"


def test_a_search_with_seeds_ends_with_a_bracket_and_the_report_and_goes_on_from_its_runs(model, command, tmp_path):
    words = f"train {model} {SEARCH}"
    code, out, err = command(words)
    assert code == 0, out + err
    (found,) = turning_points(tmp_path / "outputs/s")
    assert found["num_runs"] <= 10 and found["epsilon"] == 0.05 and found["confidence"] == 0.95
    assert found["low"] <= found["levels"][-1]["sparsity"] and found["seed_spread"] > 0
    assert found["statement"].split(";")[0] in " ".join(out.split())
    assert (tmp_path / "outputs/s/report/index.html").is_file()
    records = read_runs(tmp_path / "outputs/s")
    assert len(records) == found["num_runs"]
    by_level = {}
    for record in records:
        by_level.setdefault(record.metrics["sparsity_requested"], set()).add(record.metrics["seed"])
    assert len(by_level) >= 2 and all({0, 1} <= seeds for seeds in by_level.values())

    (records[0].path / "metrics.json").unlink()
    code, out, _ = command(words)
    assert code == 0 and f"1 computed, {len(records) - 1} there already" in out
    assert turning_points(tmp_path / "outputs/s") == [found]


def test_a_curve_without_training_takes_nine_evaluations_and_agrees_with_a_grid(evaluate, command, tmp_path):
    code, out, err = command(f"{evaluate} hydra/sweeper=turning_point name=searched")
    assert code == 0, out + err
    (found,) = turning_points(tmp_path / "outputs/searched")
    assert found["num_runs"] <= 9 and found["is_within_tolerance"] and found["confidence"] is None
    assert found["ci_low"] <= found["low"] and found["high"] - found["low"] <= 0.02
    assert len(read_runs(tmp_path / "outputs/searched")) == found["num_runs"]

    assert command(f"{evaluate} name=grid sparsities=[0.0,{found['low']},{found['high']}]")[0] == 0
    values = {r.metrics["sparsity_requested"]: r.metrics["value"] for r in read_runs(tmp_path / "outputs/grid")}
    assert values[found["low"]] - values[0.0] >= -0.01 - 1e-9 > values[found["high"]] - values[0.0]


def test_each_combination_of_other_axes_is_a_search_of_its_own(evaluate, command, tmp_path):
    words = f"{evaluate} hydra/sweeper=turning_point name=arms pruner=omp,uniform hydra.sweeper.tolerance=0.2"
    code, out, err = command(f"{words} hydra.sweeper.batch_size=3")
    assert code == 0, out + err
    found = turning_points(tmp_path / "outputs/arms")
    assert [each["label"] for each in found] == ["pruner=omp", "pruner=uniform"]
    assert all(each["is_within_tolerance"] for each in found)


def test_evaluate_with_seeds_is_a_search_with_noise(evaluate, command, tmp_path):
    words = f"{evaluate} hydra/sweeper=turning_point name=noisy pruner=random seed=0,1 hydra.sweeper.tolerance=0.2"
    code, out, err = command(words)
    assert code == 0, out + err
    (found,) = turning_points(tmp_path / "outputs/noisy")
    assert found["confidence"] == 0.95 and {0, 1} <= set(found["seeds"])


def test_a_search_among_runs_that_only_guess_ends_after_the_first_round(command, tmp_path):
    code, out, err = command("train experiment=essential_sparsity_minilm_glue scale=tiny hydra/sweeper=turning_point")
    assert code == 0, out + err  # the experiment's grids are set aside, its seeds are taken
    (found,) = turning_points(tmp_path / "outputs/essential_sparsity_minilm_glue-tiny")
    assert found["status"] == "at_chance" and found["num_runs"] == 4 and found["seeds"] == [0, 1]


def test_a_failed_run_is_told_and_ends_a_search_that_needs_it(evaluate, command, tmp_path):
    code, out, _ = command(f"{evaluate} hydra/sweeper=turning_point name=nm pruner=nm hydra.sweeper.tolerance=0.1")
    assert code == 1
    assert "sparsity=0.25" in out and "1 failed" in out
    (found,) = turning_points(tmp_path / "outputs/nm")
    assert found["num_failed"] == 1 and found["num_runs"] == 2


def test_the_dry_run_tells_the_first_round(command, tmp_path):
    code, out, err = command(f"{SOON} seed=0,1 plan=true")
    assert code == 0 and "4 of 4 points to compute" in out, out + err
    assert not list((tmp_path / "outputs").glob("s/*/metrics.json"))


@pytest.mark.parametrize("words, message", [
    ("seed=0,1 hydra.sweeper.tolerance=0", "tolerance=0 lies outside (0, 0.5)"),
    ("seed=0,1 hydra.sweeper.tolerance=1", "tolerance=1 lies outside (0, 0.5)"),
    ("seed=0,1 hydra.sweeper.budget=13", "budget=13 is below the 14 runs"),
    ("seed=0,1 sparsity=0.1,0.2", "sparsity=0.1 beside hydra/sweeper=turning_point, which chooses the levels"),
    ("seed=0,1 +hydra.sweeper.grids=[{seed:0}]", "turning_point chooses its own levels"),
    ("seed=0,1 +hydra.sweeper.tolerence=0.02", "hydra.sweeper.tolerence is no option of turning_point"),
    ("seed=0", "seed=0: one seed says nothing of the noise between runs"),
    ("seed=0,1 hydra.sweeper.noise=false", "seed=0,1 beside noise=false"),
    ("seed=0,1 pruner=opm", "did you mean omp?"),
    ("seed=a,b", "seed=a,b: seeds are whole numbers"),
])  # fmt: skip
def test_misuse_is_told_in_one_line_before_anything_runs(command, tmp_path, words, message):
    code, _, err = command(f"{SOON} {words}")
    assert code == 2 and message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_command_without_sparsities_is_refused(command):
    code, _, err = command("report name=s hydra/sweeper=turning_point")
    assert code == 2 and "report sweeps over no sparsity: hydra/sweeper=turning_point is for train and evaluate" in err
