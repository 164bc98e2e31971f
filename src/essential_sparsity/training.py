"""Fine-tune or pre-train one run, dense or masked, its parent first: plain Python, for apps, notebooks and sweepers."""

import dataclasses
import functools
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.callbacks.checkpoint_every import CheckpointEvery
from essential_sparsity.callbacks.loader_position import LoaderPosition
from essential_sparsity.callbacks.snapshot import Snapshot
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.callbacks.training_loss import TrainingLoss
from essential_sparsity.checkpoints import Checkpoint, Renamed
from essential_sparsity.evaluation import (
    calibration_batches,
    check_pruner,
    device_of,
    head_of,
    inputs_if_there,
    inputs_of,
    layer_rows,
    origin_note,
    predict,
    result,
    run_info,
    with_parent,
)
from essential_sparsity.inputs import file_digest
from essential_sparsity.pruning import Masks, exact_sparsity, prunable_names, prunable_weights
from essential_sparsity.pruning.lottery import OMP, Lottery, Round
from essential_sparsity.runs import Run, atomic_folder
from essential_sparsity.seeds import derive
from essential_sparsity.tasks.optimization import token_steps
from essential_sparsity.tasks.precision import ClippedBf16

OWN_TRAINER_KEYS = ("checkpoint_minutes", "checkpoint_steps", "validate", "max_tokens")


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
) -> dict[str, Any]:
    """Train `backbone` on `data` under one-shot masks and give the run's metrics; a finished run returns at once.

    `task(model, num_labels=…)` gives the LightningModule. `trainer` holds Lightning's Trainer arguments and
    `checkpoint_minutes`, `checkpoint_steps`, `validate`, `max_tokens`, and `logger`: callables that take `save_dir`.
    `parent` is a mapping of this function's own arguments: that run is finished first, and its `model/` is where this
    one starts.
    Under a `Lottery` above sparsity 0 the parent is the round before: its trained weights choose the masks, and this
    run starts from what the first round started from. `keep` names what to keep: "model", "checkpoints", "step=100"
    (the weights after 100 steps, in `model_at_step=100/`). `record` is what run.json says was asked for; its `config`
    decides the run's identity (default: the arguments).

    Errors: ValueError for anything wrong in the arguments, before a model is loaded; BlockingIOError when another
    process holds the run folder; FloatingPointError when the loss is no number any more.
    """
    run = run if isinstance(run, Run) else Run(Path(run))
    sparsity = exact_sparsity(sparsity)
    record = record or {"config": _config_of(backbone, data, task, pruner, sparsity, seed, trainer, parent)}
    with run.lock():
        if run.finished:
            run.check_config(record["config"])
            run.check_inputs(_inputs_if_there(backbone, data, pruner, sparsity, parent))
            if not (missing := [part for part in keep if not _kept(run, part).is_dir() and part != "checkpoints"]):
                return run.metrics
            lacking = ", ".join(f"{_kept(run, part).name}/" for part in missing)
            warnings.warn(f"{run.path} is finished but has no {lacking}: it is trained again for it", stacklevel=2)
        data.check()
        check_pruner(pruner, [sparsity], data)
        if parent is None:
            backbone.check()
        elif starts_anew(pruner, sparsity):
            finish_parent(parent, keep=_for_rewinding(pruner, parent))
            pruner = pruner.after(_round(_as_run(parent["run"])))
        else:
            finish_parent(parent)
        backbone = _started_at(backbone, pruner, sparsity, parent)
        inputs = inputs_of(backbone, data, pruner) | _round_inputs(pruner, sparsity, parent)
        parent_id = None if parent is None else _as_run(parent["run"]).info["id"]
        run.start(run_info(record, inputs=inputs, parent=parent_id))
        stage = _Stage(backbone, data, task, pruner, sparsity, seed, dict(trainer or {}), tuple(callbacks), inputs)
        if parent is not None and starts_anew(pruner, sparsity):
            stage.body_seed = _first_round(parent)["seed"]
        return stage.train(run, keep=keep, record=record)


# --- parents ----------------------------------------------------------------------------------------------------------


def finish_parent(parent: Mapping[str, Any], *, keep: Sequence[str] = ("model",)) -> Run:
    """Finish a parent run, waiting for another process that is at it, and give it with its `model/`."""
    run = _as_run(parent["run"])
    with Run(run.path.with_name(f".{run.path.name}.wait")).lock(wait=True):
        fit(**{**parent, "keep": sorted({*keep, *parent.get("keep", ())})})  # one that is finished: checks its inputs
    return run


def continued(backbone: Any, model: Path) -> Any:
    """Give a backbone that starts from the weights in a run's folder."""
    return dataclasses.replace(backbone, path=str(model), pretrained=True)


def starts_anew(pruner: Any, sparsity: Any) -> bool:
    """Say whether a run starts from what its parent started from: a lottery ticket, or a round that looks for one."""
    return isinstance(pruner, Lottery) and bool(pruner.resolve(sparsity))


def _started_at(backbone: Any, pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None) -> Any:
    """Give the backbone with the weights that a run starts from: its own, its parent's, or for a round the first's."""
    if parent is None:
        if starts_anew(pruner, sparsity):
            raise ValueError(
                f"a ticket of sparsity {float(pruner.resolve(sparsity)):g} has no round before it: give parent=…, "
                "or run essential-sparsity lottery"
            )
        return backbone
    if not starts_anew(pruner, sparsity):
        return continued(backbone, _as_run(parent["run"]).model)
    first = _first_round(parent)
    if pruner.rewind:
        return continued(backbone, _kept(_as_run(first["run"]), f"step={pruner.rewind}"))
    return _started_at(backbone, OMP, None, first.get("parent"))


def _first_round(parent: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the dense round that a chain of rounds began with."""
    while starts_anew(parent.get("pruner", OMP), parent.get("sparsity")) and parent.get("parent") is not None:
        parent = parent["parent"]
    return parent


def _inputs_if_there(
    backbone: Any, data: Any, pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None
) -> dict[str, str] | None:
    """Give the hashes that a finished run is checked against; None where its inputs are not at hand any more."""
    found = inputs_if_there(_started_at(backbone, pruner, sparsity, parent), data, pruner)
    if found is None or (parent is not None and not _as_run(parent["run"]).model.is_dir()):
        return None
    return found | _round_inputs(pruner, sparsity, parent)


def _round_inputs(pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None) -> dict[str, str]:
    """Give the hashes of what a ticket's masks are ranked by: the round before; nothing for other runs."""
    if parent is None or not starts_anew(pruner, sparsity):
        return {}
    run = _as_run(parent["run"])
    files = [*sorted(run.model.glob("*.safetensors")), run.path / "masks.safetensors"]
    return {f"round before: {file.name}": file_digest(file) for file in files}


def _for_rewinding(pruner: Lottery, parent: Mapping[str, Any]) -> list[str]:
    """Name what the round before must keep: its model, and the first round the weights that all start from."""
    is_first = not starts_anew(parent.get("pruner", OMP), parent.get("sparsity"))
    return ["model", f"step={pruner.rewind}"] if pruner.rewind and is_first else ["model"]


def _round(run: Run) -> Round:
    """Read what a finished round leaves."""
    stored = Checkpoint.open(run.model)
    names = prunable_names(stored)
    return Round(Renamed(stored, names), Masks.load(run.path / "masks.safetensors"))


def _kept(run: Run, part: str) -> Path:
    """Give the folder in which a kept part lies."""
    return run.path / (part if part in ("model", "checkpoints") else f"model_at_{part}")


def _as_run(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else Run(Path(run))


def _config_of(*arguments: Any) -> dict[str, Any]:
    """Give an identity to a call from Python: what its arguments say of themselves."""
    names = ("backbone", "data", "task", "pruner", "sparsity", "seed", "trainer", "parent")
    config: dict[str, Any] = {name: _told(value) for name, value in zip(names, arguments, strict=True)}
    sparsity = config["sparsity"]
    return config | {"sparsity": None if sparsity is None else float(Fraction(arguments[4]))}


def _told(value: Any) -> Any:
    """Say what an argument is, the same in every process; ValueError where it cannot be said."""
    if isinstance(value, Mapping):
        return {str(key): _told(item) for key, item in value.items() if key not in ("run", "logger")}
    if isinstance(value, (list, tuple)):
        return [_told(item) for item in value]
    if isinstance(value, functools.partial):
        keywords = ", ".join(f"{key}={_told(item)}" for key, item in sorted(value.keywords.items()))
        return f"{_told(value.func)}({', '.join([*map(str, map(_told, value.args)), keywords])})"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    text = repr(value)
    if " at 0x" in text:
        raise ValueError(f"{text} has no lasting name, so the run has no identity: give record={{'config': …}}")
    return text


@dataclasses.dataclass
class _Stage:
    """The parts of one training, in the order in which they are used: data, model, masks, trainer."""

    backbone: Any
    data: Any
    task: Callable[..., LightningModule]
    pruner: Any
    sparsity: Fraction | None
    seed: int
    settings: dict[str, Any]
    callbacks: tuple[Callback, ...]
    inputs: Mapping[str, str]
    body_seed: int | None = None  # of an untrained model's weights, where they are another run's

    def train(self, run: Run, *, keep: Sequence[str], record: Mapping[str, Any]) -> dict[str, Any]:
        """Train, or go on from the run's checkpoint, and write the run folder."""
        started = time.monotonic()
        preprocessing = self.backbone.preprocessing()
        self.data.prepare(preprocessing)
        self.data.seed(derive(self.seed, "order"))
        batches = calibration_batches(self.pruner, [self.sparsity], preprocessing, self.data)
        shape: dict[str, Any] = {"num_labels": self.data.num_labels, "seed": derive(self.seed, "head")}
        shape |= head_of(self.task)
        if self.body_seed is not None:
            shape["body_seed"] = derive(self.body_seed, "head")
        model = self.backbone.build(**shape)
        module, architecture = self.task(model, num_labels=self.data.num_labels), self.backbone.architecture(model)
        pruning = PruningCallback(self.pruner, sparsity=self.sparsity, architecture=architecture, batches=batches)
        loss = TrainingLoss()
        loader = self.data.train_dataloader()
        steps = [int(part.removeprefix("step=")) for part in keep if part.startswith("step=")]
        snapshots = [Snapshot(step, _kept(run, f"step={step}"), self.backbone, model) for step in steps]
        trainer, checkpoint = self._trainer(run, pruning, loss, loader, snapshots)
        resumed = checkpoint.path if checkpoint.path.is_file() else None
        self._fit(trainer, module, loader, resumed)

        predictions = predict(module, self.data.evaluation_dataloaders(), precision=str(trainer.precision))
        run.write_predictions(predictions)
        weights = {name: weight.detach() for name, weight in prunable_weights(model, architecture).items()}
        run.write_layers(layer_rows(weights, pruning.masks, architecture))
        masks = with_parent(pruning.masks, self.inputs)
        masks.save(run.path / "masks.safetensors")
        if "model" in keep:
            shutil.rmtree(run.model, ignore_errors=True)
            with atomic_folder(run.model) as temporary:
                self.backbone.save(model, temporary)
        metrics = result(predictions, metric=self.data.metric, masks=masks, requested=pruning.sparsity, record=record)
        metrics["metrics"]["train/loss"] = loss.value
        metrics |= {
            "seconds": round(time.monotonic() - started, 3),
            "steps": trainer.global_step,
            "resumed": resumed is not None,
            "device": str(trainer.strategy.root_device),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "pruning": {**pruning.notes, **origin_note(self.pruner, self.inputs)},
        }
        run.finish(metrics, keep_checkpoints="checkpoints" in keep)
        return run.metrics

    def _fit(self, trainer: Trainer, module: LightningModule, loader: Any, resumed: Path | None) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of a name that torch renames
            try:
                trainer.fit(
                    module,
                    train_dataloaders=loader,
                    val_dataloaders=list(self.data.evaluation_dataloaders().values()),
                    ckpt_path=resumed,
                    weights_only=True,
                )
            except SystemExit as error:  # Lightning's way out of Ctrl-C and of SIGTERM: it must end a sweep, too
                if isinstance(error, SIGTERMException) or isinstance(error.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from error
                raise
            except Exception as error:
                error.step = trainer.global_step  # type: ignore[attr-defined]
                raise
        module.to(trainer.strategy.root_device)

    def _trainer(
        self, run: Run, pruning: PruningCallback, loss: TrainingLoss, loader: Any, snapshots: Sequence[Callback]
    ) -> tuple[Trainer, CheckpointEvery]:
        own = {key: value for key, value in self.settings.items() if key not in OWN_TRAINER_KEYS}
        settings: dict[str, Any] = {"max_epochs": 3, "devices": 1, **own}
        if settings.get("devices", 1) not in (1, "1"):
            raise ValueError(
                f"trainer.devices={settings['devices']} is not supported yet: use 1, and sweep points side by side"
            )
        every = {
            key.removeprefix("checkpoint_"): self.settings[key] for key in OWN_TRAINER_KEYS[:2] if key in self.settings
        }
        checkpoint = CheckpointEvery(run.checkpoints, **every)
        longer = self.pruner.num_trainings(self.sparsity) if hasattr(self.pruner, "num_trainings") else 1
        for key in ("max_epochs", "max_steps"):
            if longer > 1 and (settings.get(key) or -1) > 0:
                settings[key] *= longer
        if self.settings.get("max_tokens") is not None:
            steps = token_steps(self.settings["max_tokens"], self.data.num_tokens(), len(loader), settings)
            settings["max_steps"] = min(steps, settings["max_steps"]) if settings.get("max_steps", -1) > 0 else steps
        if settings.get("precision") == "bf16-mixed":
            device = device_of(settings.get("accelerator", "auto")).type
            settings = {**settings, "precision": None, "plugins": [ClippedBf16("bf16-mixed", device)]}
        loggers = [logger(save_dir=run.path) for logger in settings.pop("logger", None) or ()]
        trainer = Trainer(
            **{"logger": loggers or False, **settings},
            callbacks=[
                *(StepSeed(self.seed), LoaderPosition(loader), pruning, loss),
                *(*snapshots, *self.callbacks, checkpoint),
            ],
            default_root_dir=run.path,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if self.settings.get("validate") else 0,
            use_distributed_sampler=False,
            log_every_n_steps=max(1, min(50, len(loader))),
        )
        return trainer, checkpoint
