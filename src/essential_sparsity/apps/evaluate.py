"""essential-sparsity evaluate: a curve without training, one model load; with no data, a description of a model."""

import time

from omegaconf import DictConfig

from essential_sparsity.apps import conf, sweeps
from essential_sparsity.apps.guard import Outcome, guarded
from essential_sparsity.apps.train import mend, parent_arguments


def job(composed: DictConfig) -> list[Outcome]:
    """Evaluate one curve; called by Hydra."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    overrides = [str(text) for text in HydraConfig.get().overrides.task]
    found: list[Outcome] = []

    def work() -> Outcome:
        asked = conf.from_hydra(composed)
        if asked.config.get("plan") and asked.config.get("data") is not None:
            from essential_sparsity.apps.plan import plan_curve

            found.extend(plan_curve(asked))
            return found[-1]
        if asked.config.get("models"):
            from essential_sparsity.apps.distributions import measure_models

            found.extend(measure_models(asked))
            return found[-1]
        if asked.config.get("data") is None:
            from essential_sparsity.apps.describe import describe

            describe(asked)
            return Outcome("described", overrides)
        found.extend(curve(asked))
        return found[-1]

    outcome = guarded(work, overrides=overrides, run=None, record=None, always=sweeping)
    if outcome.status == "described":
        return []
    outcomes = found or [outcome]
    if not sweeping:
        sweeps.outcomes.extend(outcomes)
        sweeps.progress.num_points = len(outcomes)
        if outcome.status != "failed":
            sweeps.conclude(composed, [])
        else:
            sweeps.progress.num_points = 0
    return outcomes


def curve(asked: conf.Asked) -> list[Outcome]:
    """Evaluate every level of one curve, the parent first."""
    from essential_sparsity.devices import num_ranks
    from essential_sparsity.evaluation import ascending, evaluate_curve, level_run
    from essential_sparsity.parents import continued
    from essential_sparsity.training import finish_parent

    conf.quiet_lightning()
    config, record = asked.config, asked.record
    if (number := num_ranks(config["trainer"])) > 1:
        raise ValueError(
            f"trainer.devices={number}: a curve is evaluated on one device; give trainer.devices=1, or, for a model "
            "that one card cannot hold, backbone.device_map=auto"
        )
    levels = ascending(config["sparsities"])
    before = {level: level_run(asked.folder, record, level)[0].finished for level in levels}
    built, started = conf.parts(config), time.monotonic()
    parent = parent_arguments(asked, config.get("parent"), asked.recorded.get("parent"))
    if parent is not None:
        mend(parent)
        if not all(before.values()):
            finish_parent(parent)
            record["parent"] = parent["run"].info["id"]
        built["backbone"] = continued(built["backbone"], parent["run"].model)
    metrics = evaluate_curve(
        **built,
        sparsities=config["sparsities"],
        folder=asked.folder,
        seed=config["seed"],
        precision=config["trainer"]["precision"],
        device=config["trainer"]["accelerator"],
        record=record,
    )
    makers, outcomes = conf.loggers(config), []
    for level, found in zip(levels, metrics, strict=True):
        run, own = level_run(asked.folder, record, level)
        status = "there" if before[level] else "finished"
        if status == "finished" and makers:
            from essential_sparsity.loggers import log_finished

            log_finished(makers, run)
        outcomes.append(Outcome(status, own["overrides"], str(run.path), time.monotonic() - started, found))
    return outcomes


def main() -> None:
    """Run the app."""
    conf.start("evaluate", job)
