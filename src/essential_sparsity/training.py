"""Fine-tune or pre-train one run, dense or masked, its parent first: plain Python, for apps, notebooks and sweepers."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule

from essential_sparsity.accounts import run_info
from essential_sparsity.devices import check_devices, meeting, num_ranks
from essential_sparsity.failures import is_interrupt, one_line, write_failure
from essential_sparsity.identity import told
from essential_sparsity.parents import (
    as_run,
    finished_inputs,
    first_round,
    for_rewinding,
    kept,
    read_round,
    round_inputs,
    started_at,
    starts_anew,
)
from essential_sparsity.preparation import check_pruner, check_trainable, inputs_of
from essential_sparsity.pruning import exact_sparsity
from essential_sparsity.pruning.lottery import OMP
from essential_sparsity.runs import ForeignRun, Run
from essential_sparsity.stage import Stage

Launch = Callable[[Run, int, Sequence[str]], None]
"""What starts a run's ranks and waits for them: takes the run, how many, and what to keep (apps/train.py has one)."""


def fit(
    backbone: Any,
    data: Any,
    task: Callable[..., LightningModule],
    *,
    run: Run | Path | str,
    pruner: Any = OMP,
    sparsity: Any = None,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    parent: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    record: Mapping[str, Any] | None = None,
    launch: Launch | None = None,
) -> dict[str, Any]:
    """Train `backbone` on `data` under one-shot masks and give the run's metrics; a finished run returns at once.

    `task(model, num_labels=…)` gives the LightningModule. `trainer` holds Lightning's Trainer arguments and
    `checkpoint_minutes`, `checkpoint_steps`, `validate`, `max_tokens`, and `logger`: callables that take `save_dir`.
    `parent` is a mapping of this function's own arguments: that run is finished first, and its `model/` is where this
    one starts.
    Under a `Lottery` above sparsity 0 the parent is the round before: its trained weights choose the masks, and this
    run starts from what the first round started from. `keep` names what to keep: "model", "checkpoints", "step=100"
    (the weights after 100 steps, in `model_at_step=100/`). `record` is what run.json says was asked for; its `config`
    decides the run's identity (default: the arguments). With `trainer["devices"]` above 1, `launch` starts the ranks,
    each of which calls `fit_rank`; this process holds the folder and waits.

    Errors: ValueError for anything wrong in the arguments, before a model is loaded; BlockingIOError when another
    process holds the run folder; FloatingPointError when the loss is no number any more.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    sparsity = exact_sparsity(sparsity)
    record = record or {"config": _config_of(backbone, data, task, pruner, sparsity, seed, trainer, parent)}
    with run.lock():
        if run.finished:
            run.check_config(record["config"])
            run.check_inputs(finished_inputs(backbone, data, task, pruner, sparsity, parent))
            if not (missing := [part for part in keep if not kept(run, part).is_dir() and part != "checkpoints"]):
                run.drop_left_behind()
                return run.metrics
            lacking = ", ".join(f"{kept(run, part).name}/" for part in missing)
            warnings.warn(f"{run.path} is finished but has no {lacking}: it is trained again for it", stacklevel=2)
        data.check()
        check_trainable(data)
        check_pruner(pruner, [sparsity], data)
        check_devices(trainer or {}, data, pruner, callbacks)
        if (number := num_ranks(trainer or {})) > 1 and launch is None:
            raise ValueError(
                f"trainer.devices={number} needs several processes, which essential-sparsity train starts: use it, "
                "or give fit(launch=…)"
            )
        if parent is None:
            backbone.check()
        else:
            finish_parent(parent, keep=for_rewinding(pruner, parent) if starts_anew(pruner, sparsity) else ("model",))
        stage = _stage(backbone, data, task, pruner, sparsity, seed, trainer, callbacks, parent)
        stage.inputs |= inputs_of(stage.backbone, data, task, stage.pruner) | round_inputs(pruner, sparsity, parent)
        parent_id = None if parent is None else as_run(parent["run"]).info["id"]
        run.start(run_info(record, inputs=stage.inputs, parent=parent_id, keep=keep))
        if number > 1 and launch is not None:
            launch(run, number, keep)
        else:
            stage.train(run, keep=keep, record=record)
        return run.metrics


def fit_rank(
    backbone: Any,
    data: Any,
    task: Callable[..., LightningModule],
    *,
    run: Run,
    pruner: Any = OMP,
    sparsity: Any = None,
    seed: int = 0,
    trainer: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    parent: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    record: Mapping[str, Any],
    place: Path,
) -> None:
    """Train as one of the ranks that `fit(launch=…)` started, from the same arguments; rank 0 writes the run folder.

    RANK, LOCAL_RANK and WORLD_SIZE are in the environment; the ranks meet at `place`, a file that was not there before.
    """
    sparsity = exact_sparsity(sparsity)
    with meeting(place, trainer):
        stage = _stage(backbone, data, task, pruner, sparsity, seed, trainer, callbacks, parent)
        stage.inputs |= run.info["inputs"]
        stage.train(run, keep=keep, record=record)


def _stage(
    backbone: Any,
    data: Any,
    task: Callable[..., LightningModule],
    pruner: Any,
    sparsity: Any,
    seed: int,
    trainer: Mapping[str, Any] | None,
    callbacks: Sequence[Callback],
    parent: Mapping[str, Any] | None,
) -> Stage:
    """Give the training of a run whose parent is finished."""
    stage = Stage(backbone, data, task, pruner, sparsity, seed, dict(trainer or {}), tuple(callbacks))
    if parent is not None and starts_anew(pruner, sparsity):
        stage.pruner = pruner.after(read_round(as_run(parent["run"])))
        stage.body_seed = first_round(parent)["seed"]
    stage.backbone = started_at(backbone, stage.pruner, sparsity, parent)
    return stage


# --- parents ----------------------------------------------------------------------------------------------------------


def finish_parent(parent: Mapping[str, Any], *, keep: Sequence[str] = ("model",)) -> Run:
    """Finish a parent run, waiting for another process that is at it, and give it with its `model/`.

    One that fails after it has begun leaves a failure.json of its own.
    """
    run = as_run(parent["run"])
    with Run(run.path.with_name(f".{run.path.name}.wait")).lock(wait=True):
        try:
            fit(**{**parent, "keep": sorted({*keep, *parent.get("keep", ())})})  # a finished one: checks its inputs
        except Exception as error:
            foreign = isinstance(error, (BlockingIOError, ForeignRun)) or is_interrupt(error)
            if (run.path / "run.json").is_file() and not foreign:
                try:
                    write_failure(run, error)
                except OSError as unwritten:  # the disk is full: what went wrong is told all the same
                    error.add_note(f"no failure.json: {one_line(unwritten)}")
            raise
    return run


def _config_of(*arguments: Any) -> dict[str, Any]:
    """Give an identity to a call from Python: what its arguments say of themselves."""
    names = ("backbone", "data", "task", "pruner", "sparsity", "seed", "trainer", "parent")
    config: dict[str, Any] = {name: told(value) for name, value in zip(names, arguments, strict=True)}
    sparsity = config["sparsity"]
    return config | {"sparsity": None if sparsity is None else float(Fraction(arguments[4]))}
