"""The page of arms: curves side by side, differences over pre-trainings, budgets made equal, failures named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.analysis.synthetic_sweep import open_run, write_sweep

from essential_sparsity.analysis.grouping import varying_keys
from essential_sparsity.report import write_report
from essential_sparsity.report.contrast import arm_pairs
from essential_sparsity.runs import DISTRIBUTION_BINS, Run, read_runs, run_id
from essential_sparsity.traces import merge_records, write_record

ARMS = {"sl_matched": 1.0, "ssl": 4.0}  # FLOPs of an image


def early(sparsity: float) -> float:
    """Accuracy 0.85, free up to 0.3."""
    return 0.85 - 0.5 * max(0.0, sparsity - 0.3)


def late(sparsity: float) -> float:
    """Accuracy 0.80, free up to a half."""
    return 0.80 - 0.5 * max(0.0, sparsity - 0.5)


def parent_config(arm: str, seed: int) -> dict[str, Any]:
    """Give the configuration of a pre-training: the two arms differ in many keys, one of them the other lacks."""
    own = {"momentum": 0.99, "target": "dino"} if arm == "ssl" else {"target": "labels"}
    return {"task": own, "optimizer": {"lr": 1e-3 if arm == "ssl" else 2e-3}, "seed": seed, "sparsity": None}


def write_parent(folder: Path, arm: str, seed: int, *, finished: bool = True) -> None:
    """Write a pre-training with probes, a trace and the distribution of two matrices."""
    config = parent_config(arm, seed)
    run = Run(folder / "parents" / run_id(config))
    run.start({"config": {"name": "synthetic", **config}, "id": run_id(config), "choices": {"arm": arm}})
    if not finished:
        return
    images = 1000
    run.write_probes(
        [
            {"epoch": e, "step": 10 * e, "num_images": 500 * e, "knn": knn, "linear": knn + 0.05, "feature_std": 0.1,
             "seconds": 1.0}
            for e, knn in enumerate((0.5, 0.7, 0.8) if arm == "ssl" else (0.5, 0.8, 0.9))
        ]
    )  # fmt: skip
    for place, step in enumerate(range(0, 21, 5)):
        counts = np.zeros(2**14, np.int64)
        counts[7000], counts[7700] = 1000 + 50 * place, 20_000 - 1000 - 50 * place
        told = {"num": 20_000, "num_zeros": 0, "sum": 0.0, "sum_squares": 8.0, "sum_fourths": 0.01, "largest": 0.03}
        progress = {"lr": 1e-3, "lr_sum": 0.1, "decay_factor": 1.0, "loss": 1.0, "tokens": 0, "seconds": 1.0}
        line = {"weight": "blocks.0.w", "layer": 0, "kind": "w", **told, **progress}
        write_record(run.path, step, {"blocks.0.w": counts}, [line])
    merge_records(run.path)
    middle = [0] * (DISTRIBUTION_BINS + 2)
    middle[150:172] = [100] * 22
    moments = {"num": 2200, "mean": 0.0, "std": 0.02, "rms": 0.02, "least": -0.02, "largest": 0.02, "num_zeros": 0}
    rows = [
        {"layer": layer, "kind": kind, **moments, "num_near": 90 if arm == "ssl" else 80, "counts": middle}
        for layer in range(2)
        for kind in ("query", "mlp_in")
    ]
    run.write_distribution(rows)
    run.finish({"num_images": images, "train_flops": images * ARMS[arm], "steps": 20, "seconds": 60.0, "value": 0.9})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a sweep of two arms × two pre-trainings, and its report."""
    folder = tmp_path_factory.mktemp("sweep") / "twins"
    for arm, truth in (("sl_matched", early), ("ssl", late)):
        for seed in (0, 1):
            write_parent(folder, arm, seed)
            kept = {"parent": parent_config(arm, seed), "pretraining_seed": seed}
            write_sweep(folder, truth=truth, seeds=(seed,), levels=(0.0, 0.2, 0.4, 0.6), arm=arm, num_rows=800, **kept)
    write_report(folder)
    return folder


def test_an_arm_stands_for_the_whole_parent(folder: Path) -> None:
    assert {tuple(sorted(keys)) for keys in varying_keys(read_runs(folder))} == {("arm", "pruner")}
    parents = [r for r in read_runs(folder, include_parents=True) if r.path.parent.name == "parents"]
    assert {tuple(sorted(keys.items())) for keys in varying_keys(parents)} == {
        (("arm", "sl_matched"), ("pruner", "omp")), (("arm", "ssl"), ("pruner", "omp")),
    }  # fmt: skip
    results = json.loads((folder / "report/essential_sparsity.json").read_text())
    assert sorted(each["label"] for each in results) == ["omp, arm=sl_matched", "omp, arm=ssl"]


def test_what_varies_inside_an_arm_still_tells_curves_apart(tmp_path: Path) -> None:
    for lr in (1.0, 2.0):
        for arm in ("ssl", "sl_plain"):
            parent = {"task": {"arm": arm}, "optimizer": {"lr": lr if arm == "ssl" else 5.0}, "seed": 0}
            open_run(tmp_path, sparsity=0.5, seed=0, arm=arm, parent=parent)
    keys = varying_keys(read_runs(tmp_path))
    assert {(each["arm"], each["parent.optimizer.lr"]) for each in keys} == {
        ("ssl", 1.0),
        ("ssl", 2.0),
        ("sl_plain", 5),
    }
    assert "parent.task.arm" not in keys[0]


def test_the_difference_is_over_pre_trainings(folder: Path) -> None:
    (entry,) = json.loads((folder / "report/contrasts.json").read_text())
    (each,) = entry["differences"]
    assert (each["arm"], each["reference"], each["num_pairs"], each["p"]) == ("ssl", "sl_matched", 2, None)
    assert each["difference"] == pytest.approx(0.2, abs=0.06)
    apart = [pair["difference"] for pair in each["pairs"]]
    assert each["difference"] == pytest.approx(np.mean(apart))
    assert each["ci_high"] - each["ci_low"] == pytest.approx(2 * 12.7062 * np.std(apart, ddof=1) / np.sqrt(2), rel=1e-4)
    assert "fewer than 6 pairs: no p-value" in entry["sentences"][0]


def test_at_one_floor_the_arm_that_starts_higher_may_lose_more(folder: Path) -> None:
    (entry,) = json.loads((folder / "report/contrasts.json").read_text())
    (each,) = entry["differences_above_floor"]
    dense = [r["dense"] for r in json.loads((folder / "report/essential_sparsity.json").read_text())]
    assert entry["floor"] == pytest.approx(min(dense) - entry["epsilon"])
    assert each["difference"] < entry["differences"][0]["difference"] - 0.05


def test_budgets_stand_in_one_table_and_are_made_equal(folder: Path) -> None:
    budgets = pd.read_csv(folder / "report/budgets.csv")
    assert budgets[["arm", "pretraining_seed"]].to_numpy().tolist() == [
        ["ssl", 0], ["ssl", 1], ["sl_matched", 0], ["sl_matched", 1],
    ]  # fmt: skip
    ssl = budgets.iloc[0]
    assert (ssl["num_images"], ssl["train_flops"], ssl["knn_at_start"], ssl["knn"]) == (1000, 4000, 0.5, 0.8)
    assert ssl["linear"] == pytest.approx(0.85)
    assert (ssl["near_zero_at_start"], ssl["near_zero"]) == (pytest.approx(0.05), pytest.approx(0.06))
    matched = pd.read_csv(folder / "report/matched.csv").set_index(["match", "side"])
    assert matched.loc[("images", "ssl"), "num_images"] == 1000
    assert matched.loc[("flops", "ssl"), "num_images"] == 250 and matched.loc[("flops", "sl_matched"), "knn"] == 0.9
    assert matched.loc[("probe", "sl_matched"), "num_images"] == pytest.approx(500)
    assert set(matched["num_pairs"]) == {2}


def test_the_page_shows_arms_traces_and_layers(folder: Path) -> None:
    page = (folder / "report/index.html").read_text()
    for words in (
        "Arms side by side", "Objective, not budget", "Weights, layer by layer", "Sparsity against the training step",
        "equal k-NN accuracy: ssl", "against sl_matched", "arms-0", "arm=ssl",
    ):  # fmt: skip
        assert words in page, words
    assert page.index("Arms side by side") < page.index('id="panel-0"') < page.index("Weights, layer by layer")
    figures = {path.name for path in (folder / "report/figures").rglob("*.svg")}
    assert {"probes.svg", "ridges-rms.svg", "ridges-min-max.svg", "zeros.svg", "trace.svg"} <= figures
    assert any(name.startswith("arms-0") for name in figures)


def test_a_pre_training_that_failed_is_named(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_parent(tmp_path, "sl_matched", seed)
        kept = {"parent": parent_config("sl_matched", seed), "pretraining_seed": seed, "arm": "sl_matched"}
        write_sweep(tmp_path, truth=early, seeds=(seed,), levels=(0.0, 0.4), num_rows=300, **kept)
    write_parent(tmp_path, "ssl", 0, finished=False)
    run = open_run(tmp_path, sparsity=0.0, seed=0, arm="ssl", parent=parent_config("ssl", 0), pretraining_seed=0)
    run.fail(kind="CollapseError", message="all features are <alike>", traceback="", step=20)
    write_report(tmp_path)
    page = (tmp_path / "report/index.html").read_text()
    assert "ssl, pre-training seed 0, failed</b>: CollapseError: all features are &lt;alike&gt;" in page
    assert pd.read_csv(tmp_path / "report/budgets.csv").set_index("arm").loc["ssl", "state"] == "failed"
    assert (
        "Arms side by side" not in page and "nan" not in page.split("<script")[0] and "budgets made equal" not in page
    )


def test_two_public_checkpoints_are_called_these_two(tmp_path: Path) -> None:
    for backbone, truth in (("vit_base", early), ("dino_vit_base", late)):
        for seed in (0, 1):
            write_sweep(tmp_path, truth=truth, seeds=(seed,), levels=(0.0, 0.4, 0.6), num_rows=800,
                        backbone__hub_id=backbone, backbone_choice=backbone)  # fmt: skip
    write_report(tmp_path)
    page = (tmp_path / "report/index.html").read_text()
    assert "Models side by side" in page and "these two checkpoints" in page and "Objective, not budget" not in page
    (entry,) = json.loads((tmp_path / "report/contrasts.json").read_text())
    assert entry["by"] == "backbone" and "essential_sparsity_excess" in entry["differences"][0]


def test_who_is_held_against_whom() -> None:
    assert arm_pairs(["sl_standard", "sl_matched", "ssl"]) == [
        ("ssl", "sl_matched"), ("ssl", "sl_standard"), ("sl_matched", "sl_standard"),
    ]  # fmt: skip
    assert arm_pairs(["sl_plain", "ssl"]) == [("ssl", "sl_plain")]
    assert arm_pairs(["vit", "dino", "mae"]) == [("dino", "vit"), ("mae", "vit")]
