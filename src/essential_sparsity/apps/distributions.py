"""Weights layer by layer: of the models that `evaluate models=…` names, and of a sweep's arms when it is reported."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from essential_sparsity.apps import conf
from essential_sparsity.apps.guard import Outcome
from essential_sparsity.runs import Run, RunRecord, read_runs, run_at, run_id

if TYPE_CHECKING:
    from collections.abc import Mapping


def measure_models(asked: conf.Asked) -> list[Outcome]:
    """Measure every model of `models`, one run folder each, one matrix in memory at a time; finished ones stay."""
    models, recorded = asked.config["models"], asked.recorded["models"]
    return [_measure(asked, name, models[name], recorded[name]) for name in models]


def _measure(asked: conf.Asked, name: str, node: Any, recorded: Any) -> Outcome:
    from essential_sparsity.evaluation import run_info
    from essential_sparsity.streaming.distribution import measure_distribution
    from essential_sparsity.streaming.places import measure_places

    started, overrides = time.monotonic(), [f"model={name}"]
    config = {"name": asked.config["name"], "model": name, "backbone": recorded, "seed": asked.config["seed"]}
    smallest = asked.config.get("smallest")
    config |= {} if smallest is None else {"smallest": smallest}
    run = run_at(asked.folder, overrides, run_id(config))
    with run.lock():
        if run.finished:
            run.check_config(config)
            run.check_inputs(_inputs_if_there(node))
            return Outcome("there", overrides, str(run.path), metrics=run.metrics)
        weights, inputs = _opened(node, asked.config["seed"])
        record = {"config": config, "choices": {}, "overrides": overrides, "command": asked.command}
        config["report"] = asked.config.get("report")
        run.start(run_info(record, inputs=inputs, parent=None))
        rows = measure_distribution(weights)
        run.write_distribution(rows)
        if smallest is not None:
            run.write_places(measure_places(weights, smallest))
        num = sum(row["num"] for row in rows)
        seconds = round(time.monotonic() - started, 3)
        run.finish({
            "num_prunable": num, "near_zero": sum(row["num_near"] for row in rows) / num, "seed": config["seed"],
            "seconds": seconds,
        })  # fmt: skip
    return Outcome("finished", overrides, str(run.path), seconds, run.metrics)


def _opened(node: Any, seed: int) -> tuple["Mapping[str, Any]", dict[str, str]]:
    """Give a model's weights by name, lazily where they lie in a local file, and the hashes of what they are read from.

    `node` is a backbone, or the folder of a checkpoint or run.
    """
    if isinstance(node, str):
        from essential_sparsity.similarity import open_weights

        stored = open_weights(node)
        return stored, {"weights": stored.digest()}
    from essential_sparsity.apps.describe import weights_of

    backbone = conf.instantiate(node)
    weights = weights_of(backbone, seed=seed)
    return weights, backbone.inputs()


def _inputs_if_there(node: Any) -> dict[str, str] | None:
    """Give the hashes that a finished run is checked against; None where its inputs are not at hand any more."""
    try:
        return _opened(node, 0)[1] if isinstance(node, str) else conf.instantiate(node).inputs()
    except (OSError, ValueError):
        return None


def report_models(folder: Path) -> bool:
    """Write the page of a folder whose runs are measured models; False where they are not."""
    records = read_runs(folder)
    if not records or not all("model" in record.config for record in records):
        return False
    from essential_sparsity.report.distribution import sentence, write_distribution_page

    print(sentence(write_distribution_page(records, folder / "report")))
    return True


def measure_arms(folder: Path) -> None:
    """Measure the weights that each finished pre-training of an arm handed on, once; the page draws the tables."""
    for record in read_runs(folder, include_parents=True):
        if _is_unmeasured_arm(record):
            from essential_sparsity.similarity import open_weights
            from essential_sparsity.streaming.distribution import measure_distribution

            Run(record.path).write_distribution(measure_distribution(open_weights(record.path)))


def _is_unmeasured_arm(record: RunRecord) -> bool:
    is_arm = record.path.parent.name == "parents" and "arm" in (record.info.get("choices") or {})
    is_there = record.finished and (record.path / "model").is_dir()
    return is_arm and is_there and not (record.path / "distribution.parquet").is_file()
