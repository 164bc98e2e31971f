"""Arms: recipes of the pre-training that differ in what they say and in nothing else; models laid side by side."""

import pytest
from hydra import compose, initialize_config_dir

from essential_sparsity.apps import conf
from essential_sparsity.apps.distributions import measure_arms
from essential_sparsity.runs import flatten, read_runs

EXPERIMENT = "experiment=supervised_vs_self_supervised"


def parent_of(arm: str, *words: str) -> dict:
    """Give the complete, flat configuration of an arm's pre-training."""
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        composed = compose("train", overrides=[EXPERIMENT, f"arm={arm}", "seed=3", *words])
    asked = conf.complete(composed, choices={"arm": arm}, overrides=[])
    return flatten(asked.config["parent"])


def changed(one: dict, other: dict) -> set[str]:
    """Name the keys in which two configurations differ, `task.*` for all that one of two tasks alone has."""
    keys = {key for key in one.keys() & other.keys() if one[key] != other[key]}
    return keys | {f"{key.rpartition('.')[0]}.*" for key in one.keys() ^ other.keys()}


def test_the_twins_differ_in_objective_and_views_alone():
    ssl, twin = parent_of("ssl"), parent_of("sl_matched")
    assert changed(ssl, twin) == {
        "task._target_", "task.*", "task.export", "data.augmentation._target_", "data.augmentation.*",
    }  # fmt: skip
    assert ssl["task.momentum"] == twin["task.ema_momentum"] and ssl["task.weight_decay"] == twin["task.weight_decay"]
    assert (ssl["task.export"], twin["task.export"]) == ("student", "model")  # raw weights with raw weights
    assert ssl["seed"] == twin["seed"] == 3 and ssl["data.part"] == "first"


def test_a_budget_arm_is_the_twin_trained_longer_or_until_it_is_as_good():
    twin = parent_of("sl_matched")
    flops, probe = parent_of("sl_flops", "axes.recipe.flops_epochs=41"), parent_of("sl_probe")
    assert changed(twin, flops) == {"trainer.max_epochs"} and flops["trainer.max_epochs"] == 41
    assert changed(twin, probe) == {"callbacks.probes.stop_at"} and probe["callbacks.probes.stop_at"] == 0.78


def test_a_recipe_s_numbers_reach_both_twins_and_the_command_line_wins():
    for arm in ("ssl", "sl_matched"):
        found = parent_of(
            arm, "axes.recipe.momentum=0.9", "axes.recipe.global_scale=[0.7,1.0]", "parent.optimizer.lr=1.0"
        )
        assert found["task.momentum" if arm == "ssl" else "task.ema_momentum"] == 0.9
        assert found["data.augmentation.global_scale"] == [0.7, 1.0] and found["optimizer.lr"] == 1.0


def test_without_an_experiment_an_arm_has_dino_s_own_numbers():
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        composed = compose("train", overrides=["backbone=vit_base", "data=cifar10", "arm=ssl"])
    parent = flatten(conf.complete(composed, choices={}, overrides=[]).config["parent"])
    assert (parent["task.out_dim"], parent["data.augmentation.num_local"], parent["optimizer.lr"]) == (65536, 8, 5e-4)
    assert parent["task.teacher_temperature"] == [0.04, 0.07]


@pytest.mark.parametrize(("arm", "key"), [("sl_flops", "flops_epochs"), ("sl_probe", "probe_accuracy")])
def test_a_budget_that_nobody_gave_is_one_line(command, arm, key):
    code, _, err = command(f"train data=digits backbone=vit_tiny arm={arm} seed=0")
    assert code == 2 and len(err.strip().splitlines()) == 1 and f"not set: add +axes.recipe.{key}=…" in err


def test_an_unknown_arm_has_its_neighbour_named(command):
    code, _, err = command("train experiment=demo arm=sl_matchd")
    assert code == 2 and "did you mean sl_matched?" in err


def test_a_sweep_of_two_arms_shows_them_side_by_side_and_measures_their_weights_once(command, tmp_path):
    code, out, err = command("train experiment=demo scale=tiny pruner=omp seed=0 sparsity=0.0,0.5")
    assert code == 0, out + err
    folder = tmp_path / "outputs/demo-tiny"
    parents = [r for r in read_runs(folder, include_parents=True) if r.path.parent.name == "parents"]
    assert {r.info["choices"]["arm"] for r in parents} == {"sl_plain", "ssl"}
    tables = {r.path: r.distribution() for r in parents}
    assert all(table is not None and set(table["kind"].to_pylist()) >= {"query", "key", "value"}
               for table in tables.values())  # fmt: skip
    page = (folder / "report/index.html").read_text()
    assert "Arms side by side" in page and "Weights, layer by layer" in page and "Objective, not budget" in page
    times = {path: (path / "distribution.parquet").stat().st_mtime_ns for path in tables}
    measure_arms(folder)
    assert times == {path: (path / "distribution.parquet").stat().st_mtime_ns for path in tables}


def test_my_own_model_stands_beside_the_others(command, tmp_path):
    code, out, err = command("train backbone=vit_tiny data=digits trainer.max_epochs=1 save_model=true name=own")
    assert code == 0, out + err
    (own,) = read_runs(tmp_path / "outputs/own")
    words = f"evaluate experiment=layerwise_distribution scale=tiny +models.mine={own.path}"
    code, out, err = command(words)
    assert code == 0 and "3 points: 3 computed" in out and "mine" in out, out + err
    code, out, err = command(words)
    assert code == 0 and "0 computed, 3 there already" in out
    code, _, err = command("evaluate experiment=layerwise_distribution scale=tiny +models.mine=nowhere")
    assert code == 2 and "checkpoint nowhere does not exist" in err


def test_an_evaluation_that_lays_nothing_side_by_side_keeps_its_identity():
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        composed = compose("evaluate", overrides=["backbone=vit_tiny", "data=digits"])
    assert "models" not in conf.complete(composed, choices={}, overrides=[]).recorded
