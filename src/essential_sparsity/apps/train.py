"""essential-sparsity train: one run, or a sweep of them, dense or masked, parents first."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from essential_sparsity.apps import conf, sweeps
from essential_sparsity.apps.guard import Outcome, guarded


def job(composed: DictConfig) -> Outcome:
    """Do one point; called by Hydra, in this process or in a launcher's worker."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    sweeping = HydraConfig.get().mode == RunMode.MULTIRUN
    overrides = [str(text) for text in HydraConfig.get().overrides.task]
    asked: conf.Asked | None = None
    try:
        if composed.get("tuned") and not sweeping:
            raise ValueError("tuned=true chooses among several runs: add -m, or take an experiment that sweeps")
        asked = conf.from_hydra(composed)
        if asked.config.get("data") is None:
            raise ValueError("data is not set: a run is trained on something, add data=…")
    except Exception as error:
        failure = error

        def work() -> Outcome:
            raise failure
    else:

        def work() -> Outcome:
            return point(asked)

    outcome = guarded(
        work,
        overrides=asked.overrides if asked else overrides,
        run=asked.run if asked and not asked.config.get("plan") else None,
        record=asked.record if asked else None,
        always=sweeping,
    )
    if sweeping:
        sweeps.progress.tell(outcome, asked.folder if asked else Path("outputs"))
    else:
        sweeps.outcomes.append(outcome)
    return outcome


def point(asked: conf.Asked) -> Outcome:
    """Train one point, or find that it is finished, from the same configuration and inputs."""
    run = asked.run
    if asked.config.get("plan"):
        from essential_sparsity.apps.plan import plan_point

        return plan_point(asked)
    from essential_sparsity.training import fit

    conf.quiet_lightning()
    nothing_to_do = run.finished and not (asked.config.get("save_model") and not run.model.is_dir())
    sweeps.refuse_failed_parents(run for run, _ in asked.parents())
    started = time.monotonic()
    built = arguments(asked)
    mend(built["parent"])
    nothing_to_do = nothing_to_do and not run.cut_short()
    metrics = fit(**built)
    status = "there" if nothing_to_do else "finished"
    return Outcome(status, asked.overrides, str(run.path), time.monotonic() - started, metrics)


def mend(parent: Mapping[str, Any] | None) -> None:
    """Train parents again whose files were cut short, oldest first: a finished run would not look at its parent's."""
    from essential_sparsity.training import finish_parent

    if parent is not None:
        mend(parent["parent"])
        run = parent["run"]
        if run.finished and run.cut_short():
            finish_parent(parent, keep=run.kept)


def arguments(asked: conf.Asked) -> dict[str, Any]:
    """Build the arguments of `training.fit` from a complete configuration."""
    own = stage_arguments(asked.config)
    kept = {"model": "save_model", "checkpoints": "keep_checkpoints"}
    own |= {"run": asked.run, "record": asked.record, "keep": [k for k, key in kept.items() if asked.config.get(key)]}
    own |= {"launch": launcher(asked, 0)}
    return own | {"parent": parent_arguments(asked, asked.config.get("parent"), asked.recorded.get("parent"))}


def parent_arguments(
    asked: conf.Asked, config: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None, depth: int = 1
) -> dict[str, Any] | None:
    """Build a parent's arguments, and its own parents'; `depth` counts how far it is from the run."""
    if config is None or recorded is None:
        return None
    run = conf.Run(asked.folder / "parents" / conf.run_id(recorded))
    record = {
        "config": {"name": asked.config["name"], **recorded},
        "choices": {"arm": asked.choices["arm"]} if "arm" in asked.choices and _is_pretraining(asked, config) else {},
        "overrides": [],
        "command": asked.command,
    }
    grandparent = parent_arguments(asked, config.get("parent"), recorded.get("parent"), depth + 1)
    own = stage_arguments({**config, "logger": asked.config.get("logger")})
    return own | {"run": run, "record": record, "parent": grandparent, "launch": launcher(asked, depth)}


def launcher(asked: conf.Asked, depth: int) -> Callable[[Any, int, Sequence[str]], None]:
    """Give what starts the ranks of the run (depth 0), its parent (1), …, each from this same configuration."""

    def launch(run: Any, number: int, keep: Sequence[str]) -> None:
        from essential_sparsity import ranks

        ranks.launch({"asked": dataclasses.asdict(asked), "depth": depth, "keep": list(keep)}, run, number)

    return launch


def stage_at(asked: conf.Asked, depth: int) -> dict[str, Any]:
    """Build the arguments of the run (depth 0), its parent (1), …: what a rank of it is asked for."""
    if depth == 0:
        return arguments(asked)
    stage = parent_arguments(asked, asked.config.get("parent"), asked.recorded.get("parent"))
    for _ in range(depth - 1):
        stage = None if stage is None else stage["parent"]
    assert stage is not None
    return stage


def _is_pretraining(asked: conf.Asked, config: Mapping[str, Any]) -> bool:
    """Say whether a parent is what `arm=` describes: the nearest one that is no round of a lottery."""
    from essential_sparsity.runs import ROUND_ROLE

    stages = (stage for _, stage in asked.parents() if stage.get("role") != ROUND_ROLE)
    return next(stages, None) is config


def stage_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a run and its parents have in common."""
    return conf.parts(config) | {
        "sparsity": config.get("sparsity"),
        "seed": config["seed"],
        "trainer": {
            **config["trainer"],
            "logger": conf.loggers(config),
        },
        "callbacks": [conf.instantiate(node) for node in (config.get("callbacks") or {}).values()],
    }


def main() -> None:
    """Run the app."""
    conf.start("train", job)
