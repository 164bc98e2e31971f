"""Fine-tune or pre-train one run, dense or masked, its parent first: plain Python, for apps, notebooks and sweepers."""

import dataclasses
import math
import shutil
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from essential_sparsity.accounts import layer_rows, result, run_info
from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.callbacks.augmentation import Augment
from essential_sparsity.callbacks.budget import Budget
from essential_sparsity.callbacks.checkpoint_every import CheckpointEvery
from essential_sparsity.callbacks.loader_position import LoaderPosition
from essential_sparsity.callbacks.snapshot import Snapshot
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.callbacks.training_loss import TrainingLoss
from essential_sparsity.identity import told
from essential_sparsity.loggers import opened
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
from essential_sparsity.predictions import details, device_of, predict_rows
from essential_sparsity.preparation import (
    calibration_batches,
    check_pruner,
    check_trainable,
    head_of,
    inputs_of,
    origin_note,
    refuse_own_weights,
    with_parent,
)
from essential_sparsity.pruning import Masks, exact_sparsity, prunable_weights
from essential_sparsity.pruning.lottery import OMP
from essential_sparsity.runs import ForeignRun, Run, atomic_folder
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
            run.check_inputs(finished_inputs(backbone, data, pruner, sparsity, parent))
            if not (missing := [part for part in keep if not kept(run, part).is_dir() and part != "checkpoints"]):
                return run.metrics
            lacking = ", ".join(f"{kept(run, part).name}/" for part in missing)
            warnings.warn(f"{run.path} is finished but has no {lacking}: it is trained again for it", stacklevel=2)
        data.check()
        check_trainable(data)
        check_pruner(pruner, [sparsity], data)
        if parent is None:
            backbone.check()
        elif starts_anew(pruner, sparsity):
            finish_parent(parent, keep=for_rewinding(pruner, parent))
            pruner = pruner.after(read_round(as_run(parent["run"])))
        else:
            finish_parent(parent)
        backbone = started_at(backbone, pruner, sparsity, parent)
        inputs = inputs_of(backbone, data, pruner) | round_inputs(pruner, sparsity, parent)
        parent_id = None if parent is None else as_run(parent["run"]).info["id"]
        run.start(run_info(record, inputs=inputs, parent=parent_id))
        settings = dict(trainer or {})
        with opened(settings.pop("logger", None) or (), run) as loggers:
            settings["logger"] = loggers or False
            stage = _Stage(backbone, data, task, pruner, sparsity, seed, settings, tuple(callbacks), inputs)
            if parent is not None and starts_anew(pruner, sparsity):
                stage.body_seed = first_round(parent)["seed"]
            return stage.train(run, keep=keep, record=record)


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
            if (run.path / "run.json").is_file() and not isinstance(error, (BlockingIOError, ForeignRun)):
                text = "".join(traceback.format_exception(error))
                message, step = " ".join(str(error).split()), getattr(error, "step", None)
                run.fail(kind=type(error).__name__, message=message, traceback=text, step=step)
            raise
    return run


def _config_of(*arguments: Any) -> dict[str, Any]:
    """Give an identity to a call from Python: what its arguments say of themselves."""
    names = ("backbone", "data", "task", "pruner", "sparsity", "seed", "trainer", "parent")
    config: dict[str, Any] = {name: told(value) for name, value in zip(names, arguments, strict=True)}
    sparsity = config["sparsity"]
    return config | {"sparsity": None if sparsity is None else float(Fraction(arguments[4]))}


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
        module, architecture, batches = self._built()
        pruning = PruningCallback(self.pruner, sparsity=self.sparsity, architecture=architecture, batches=batches)
        loss, budget = TrainingLoss(), Budget() if hasattr(module, "features") else None
        loader = self.data.train_dataloader()
        exported: Any = getattr(module, "exported", module.model)
        steps = [int(part.removeprefix("step=")) for part in keep if part.startswith("step=")]
        snapshots = [Snapshot(step, kept(run, f"step={step}"), self.backbone, exported) for step in steps]
        measuring = [callback for callback in (pruning, loss, budget) if callback is not None]
        trainer, checkpoint = self._trainer(run, loader, [*measuring, *snapshots])
        resumed = checkpoint.path if checkpoint.path.is_file() else None
        self._fit(trainer, module, loader, resumed)

        masks = with_parent(pruning.masks, self.inputs)
        metrics = self._result(run, module, masks, architecture, precision=str(trainer.precision), record=record)
        if "model" in keep:
            shutil.rmtree(run.model, ignore_errors=True)
            with atomic_folder(run.model) as temporary:
                self.backbone.save(exported, temporary)
        metrics["metrics"]["train/loss"] = loss.value
        metrics |= {
            "seconds": round(time.monotonic() - started, 3),
            "steps": trainer.global_step,
            "resumed": resumed is not None,
            "device": str(trainer.strategy.root_device),
            "num_parameters": sum(parameter.numel() for parameter in exported.parameters()),
            "pruning": {**pruning.notes, **origin_note(self.pruner, self.inputs)},
        }
        metrics |= {} if budget is None else {"num_images": budget.num_images, "train_flops": budget.train_flops}
        run.finish(metrics, keep_checkpoints="checkpoints" in keep)
        return run.metrics

    def _built(self) -> tuple[LightningModule, Any, Any]:
        """Prepare the data and build the model: the module, its architecture, what a calibrated pruner reads."""
        preprocessing = self.backbone.preprocessing()
        self.data.prepare(preprocessing)
        self.data.seed(derive(self.seed, "order"))
        batches = calibration_batches(self.pruner, [self.sparsity], preprocessing, self.data)
        shape: dict[str, Any] = {"num_labels": self.data.num_labels, "seed": derive(self.seed, "head")}
        shape |= head_of(self.task)
        if getattr(self.pruner, "keeps_head", False) and self.pruner.resolve(self.sparsity):
            shape["require_head"] = True  # it was trained with the weights that are pruned
        if self.body_seed is not None:
            shape["body_seed"] = derive(self.body_seed, "head")
        model = self.backbone.build(**shape)
        built = [name for name, _ in model.named_parameters()]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "task"))  # a task may have weights of its own
            module = self.task(model, num_labels=self.data.num_labels)
        if shape.get("require_head"):
            refuse_own_weights(module, built)
        return module, self.backbone.architecture(model), batches

    def _result(
        self,
        run: Run,
        module: LightningModule,
        masks: Masks,
        architecture: Any,
        *,
        precision: str,
        record: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Predict every evaluation row, write the run's tables and masks, and give what metrics.json begins with."""
        predictions = predict_rows(module, self.data, precision=precision)
        run.write_predictions(predictions)
        exported: Any = getattr(module, "exported", module.model)
        weights = {name: weight.detach() for name, weight in prunable_weights(exported, architecture).items()}
        run.write_layers(layer_rows(weights, masks, architecture))
        masks.save(run.path / "masks.safetensors")
        requested = self.pruner.resolve(self.sparsity)
        metrics = result(predictions, metric=self.data.metric, masks=masks, requested=requested, record=record)
        metrics["metrics"] |= details(predictions, self.data, module)
        return metrics

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

    def _trainer(self, run: Run, loader: Any, measuring: Sequence[Callback]) -> tuple[Trainer, CheckpointEvery]:
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
        trainings = self.pruner.num_trainings(self.sparsity) if hasattr(self.pruner, "num_trainings") else 1
        for key in ("max_epochs", "max_steps"):
            if trainings != 1 and (settings.get(key) or -1) > 0:
                settings[key] = math.ceil(settings[key] * trainings)
        if self.settings.get("max_tokens") is not None:
            steps = token_steps(self.settings["max_tokens"], self.data.num_tokens(), len(loader), settings)
            settings["max_steps"] = min(steps, settings["max_steps"]) if settings.get("max_steps", -1) > 0 else steps
        if settings.get("precision") == "bf16-mixed":
            device = device_of(settings.get("accelerator", "auto")).type
            settings = {**settings, "precision": None, "plugins": [ClippedBf16("bf16-mixed", device)]}
        views = [] if getattr(self.data, "augmentation", None) is None else [Augment(self.data.augmentation)]
        for bind in (getattr(callback, "bind", None) for callback in self.callbacks):
            if bind is not None:
                bind(self.data)
        steps = settings.get("max_steps") or -1
        trainer = Trainer(
            **settings,
            callbacks=[
                *(StepSeed(self.seed), LoaderPosition(loader), *views),
                *(*measuring, *self.callbacks, checkpoint),
            ],
            default_root_dir=run.path,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if self.settings.get("validate") else 0,
            use_distributed_sampler=False,
            log_every_n_steps=max(1, min(50, len(loader), steps if steps > 0 else 50)),
        )
        return trainer, checkpoint
