"""Loggers: one logger run per point, closed between points, read back; curves and essential points at a sweep's end."""

import csv
import importlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from essential_sparsity import loggers
from essential_sparsity.runs import Run, read_runs, write_json

SWEEP = "train backbone=vit_tiny data=digits name=s trainer.max_steps=2 schedule=linear -m sparsity=0.0,0.5 seed=0"
EXTRA = "the extra `loggers`: pip install 'essential-sparsity[loggers]'"


class Recording:
    """A Lightning logger of three methods, which remembers what it was told, in order."""

    def __init__(self, told, save_dir):
        self.told, self.name = told, Path(save_dir).name

    def log_hyperparams(self, config):
        self.told.append((self.name, "config", config))

    def log_metrics(self, numbers, step=None):
        self.told.append((self.name, "metrics", dict(numbers)))

    def finalize(self, status):
        self.told.append((self.name, "closed", status))


def begun(folder, name="r~1", config=None):
    run = Run(folder / name)
    write_json(run.path / "run.json", {"config": {"name": "s", "seed": 3, "optimizer": {"lr": 0.1}, **(config or {})}})
    return run


def test_a_logger_run_knows_its_configuration_and_result_and_is_closed(tmp_path):
    told, run = [], begun(tmp_path)
    with loggers.opened([lambda save_dir: Recording(told, save_dir)], run) as found:
        assert len(found) == 1
        run.finish({"value": 0.5, "metrics": {"train/loss": 1.5}, "steps": 7, "metric": "accuracy", "resumed": False})
    (_, _, config), (_, _, numbers), closed = told
    assert config == {"seed": 3, "optimizer.lr": 0.1}
    assert numbers == {"run/value": 0.5, "run/train/loss": 1.5, "run/steps": 7}
    assert closed == ("r~1", "closed", "success")


def test_a_failed_point_leaves_no_logger_open(tmp_path):
    told = []
    with (
        pytest.raises(ZeroDivisionError),
        loggers.opened([lambda save_dir: Recording(told, save_dir)], begun(tmp_path)),
    ):
        raise ZeroDivisionError
    assert [entry[1:] for entry in told][1:] == [("closed", "failed")]


def test_a_logger_that_fails_to_open_closes_those_before_it(tmp_path):
    told = []

    def broken(save_dir):
        raise ConnectionError("no route")

    with (
        pytest.raises(ConnectionError),
        loggers.opened([lambda save_dir: Recording(told, save_dir), broken], begun(tmp_path)),
    ):
        pass
    assert told[-1] == ("r~1", "closed", "failed")


def test_a_logger_that_fails_at_the_end_is_a_warning_for_the_run_is_done(tmp_path, caplog):
    class Broken(Recording):
        def log_metrics(self, numbers, step=None):
            raise ConnectionError("no route")

    told, run = [], begun(tmp_path)
    with caplog.at_level(logging.WARNING), loggers.opened([lambda save_dir: Broken(told, save_dir)], run):
        run.finish({"value": 0.5})
    assert "Broken: not everything was logged: no route" in caplog.text
    assert told[-1] == ("r~1", "closed", "success")


def test_a_folder_says_which_sweep_it_belongs_to():
    assert loggers.place("outputs/demo/seed=0~ab") == ("demo", "seed=0~ab")
    assert loggers.place("outputs/demo/parents/ab") == ("demo", "parents/ab")
    assert loggers.place("outputs/demo/report") == ("demo", "report")


@pytest.mark.parametrize(
    "choice, package", [("TensorBoard", "tensorboard"), ("WeightsAndBiases", "wandb"), ("MLflow", "mlflow")]
)
def test_a_missing_package_is_named_with_its_extra(choice, package, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"needs {package}, an extra: pip install 'essential-sparsity\[loggers\]'"):
        getattr(loggers, choice)()


def test_curves_are_logged_against_sparsity_and_points_with_their_interval(tmp_path):
    told = []
    maker: Any = type("Maker", (), {
        "__call__": lambda self, *, save_dir: Recording(told, save_dir),
        "report": lambda self, logger, report, found: found.log(logger),
    })()  # fmt: skip
    report = tmp_path / "s" / "report"
    report.mkdir(parents=True)
    rows = ["curve,split,sparsity,seed,value", "omp,test,0.0,0,0.9", "omp,test,0.0,1,0.7", "omp,test,0.5,0,0.6"]
    (report / "curves.csv").write_text("\n".join(rows))
    point = {
        "label": "omp",
        "split": "test",
        "status": "found",
        "essential_sparsity": 0.4,
        "ci_low": 0.3,
        "ci_high": None,
    }
    (report / "essential_sparsity.json").write_text(json.dumps([point]))

    loggers.log_report([maker], tmp_path / "s")
    assert [numbers for _, kind, numbers in told if kind == "metrics"] == [
        {"curve/omp/test": pytest.approx(0.8)},
        {"curve/omp/test": 0.6},
        {"essential_sparsity/omp/test": 0.4, "ci_low/omp/test": 0.3},
    ]
    assert told[-1] == ("report", "closed", "success")
    loggers.log_report([maker], tmp_path / "s")
    assert len(told) == 4, "the same report is not logged twice"


def test_csv_is_always_there_and_a_resumed_start_is_another_version(command, tmp_path):
    assert command(SWEEP)[0] == 0
    for record in read_runs(tmp_path / "outputs/s"):
        with (record.path / "log/version_0/metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert "train/loss" in rows[0] and float(rows[-1]["run/value"]) == record.metrics["value"]


def test_tensorboard_reads_back_what_a_sweep_wrote(command, tmp_path):
    pytest.importorskip("tensorboard", reason=EXTRA)
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")

    def scalars(folder):
        events = accumulator.EventAccumulator(str(folder)).Reload()
        return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    code, out, err = command(SWEEP.replace("-m", "logger=tensorboard -m").replace("0.0,0.5", "0.0,1.5,0.5"))
    assert code == 1 and "2 computed, 0 there already, 1 failed" in out, out + err
    records = [record for record in read_runs(tmp_path / "outputs/s") if record.finished]
    for record in records:
        found = scalars(record.path / "tensorboard")
        assert found["run/value"][-1][1] == pytest.approx(record.metrics["value"])
        assert found["run/sparsity"][-1][1] == pytest.approx(record.metrics["sparsity"])
        assert {step for step, _ in found["train/loss"]} <= {0, 1, 2}
    curve = scalars(tmp_path / "outputs/s/report/tensorboard")
    (values,) = [found for tag, found in curve.items() if tag.startswith("curve/")]
    by_level = {record.metrics["sparsity_requested"]: record.metrics["value"] for record in records}
    assert [step for step, _ in values] == [0, 500]
    assert [value for _, value in values] == pytest.approx([by_level[0.0], by_level[0.5]])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_reads_back_one_run_per_point_and_one_of_the_report(command, tmp_path):
    mlflow = pytest.importorskip("mlflow", reason=EXTRA)

    code, out, err = command(SWEEP.replace("-m", "logger=[mlflow] -m"))
    assert code == 0, out + err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    found = {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("s").experiment_id])}
    records = read_runs(tmp_path / "outputs/s")
    assert set(found) == {record.path.name for record in records} | {"report"}
    for record in records:
        run = found[record.path.name]
        assert run.info.status == "FINISHED"
        assert run.data.metrics["run/value"] == record.metrics["value"]
        assert float(run.data.params["sparsity"]) == record.metrics["sparsity_requested"]
        assert run.data.params["optimizer.lr"] == str(record.config["optimizer"]["lr"])
    report = found["report"]
    (curve,) = [tag for tag in report.data.metrics if tag.startswith("curve/")]
    history = client.get_metric_history(report.info.run_id, curve)
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == [0, 500]
    assert {file.path for file in client.list_artifacts(report.info.run_id)} >= {
        "curves.csv",
        "essential_sparsity.json",
    }

    (records[0].path / "metrics.json").unlink()
    assert command(SWEEP.replace("-m", "logger=[mlflow] -m"))[0] == 0
    again = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    assert len([run for run in again if run.info.run_name == records[0].path.name]) == 1, (
        "a resumed run is the same run"
    )


def test_wandb_offline_keeps_one_run_per_point(command, tmp_path):
    wandb = pytest.importorskip("wandb", reason=EXTRA)

    code, out, err = command(SWEEP.replace("-m", "logger=wandb logger.wandb.offline=true -m"))
    assert code == 0, out + err
    assert wandb.run is None
    for record in [*(record.path for record in read_runs(tmp_path / "outputs/s")), tmp_path / "outputs/s/report"]:
        assert len(list(record.glob("wandb/offline-run-*/run-*.wandb"))) == 1


def test_levels_of_a_curve_without_training_are_logged_once_each(command, tmp_path):
    asked = "train backbone=vit_tiny data=digits name=m trainer.max_steps=1 sparsity=0.0 save_model=true"
    assert command(asked)[0] == 0
    (model,) = (tmp_path / "outputs/m").glob("*/model")
    csv_logger = "+logger.csv={_target_: pytorch_lightning.loggers.CSVLogger, _partial_: true, name: log}"
    words = [
        "evaluate",
        f"backbone.path={model}",
        "backbone=vit_tiny",
        "backbone.pretrained=true",
        "data=digits",
        "name=e",
        csv_logger,
    ]
    for _ in range(2):
        code, out, err = command([*words, "sparsities=[0.0,0.5]"])
        assert code == 0, out + err
    for record in read_runs(tmp_path / "outputs/e"):
        (table,) = record.path.glob("log/version_*/metrics.csv")
        with table.open() as file:
            assert float(next(csv.DictReader(file))["run/value"]) == record.metrics["value"]


def test_a_parents_training_is_logged_like_its_childrens(command, tmp_path):
    assert command("train experiment=demo scale=tiny arm=sl_plain seed=0 sparsity=0.5 pruner=omp")[0] == 0
    assert len(list((tmp_path / "outputs/demo-tiny/parents").glob("*/log/version_0/metrics.csv"))) == 1
