"""One training, from data to run folder: what `fit` does once parents are finished and the folder is held."""

import dataclasses
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.exceptions import SIGTERMException

from essential_sparsity import preemption
from essential_sparsity.accounts import layer_rows, result
from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.callbacks.augmentation import Augment
from essential_sparsity.callbacks.budget import Budget
from essential_sparsity.callbacks.checkpoint_every import CheckpointEvery
from essential_sparsity.callbacks.loader_position import LoaderPosition
from essential_sparsity.callbacks.snapshot import Snapshot
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.callbacks.training_loss import TrainingLoss
from essential_sparsity.devices import for_trainer, is_first, part_ways
from essential_sparsity.loggers import opened
from essential_sparsity.parents import kept
from essential_sparsity.predictions import details, device_of, predict_rows
from essential_sparsity.preparation import calibration_batches, head_of, origin_note, refuse_own_weights, with_parent
from essential_sparsity.pruning import Masks, prunable_weights
from essential_sparsity.runs import Run, atomic_folder
from essential_sparsity.seeds import derive
from essential_sparsity.sharding import ShardedBlocks
from essential_sparsity.tasks.optimization import token_steps
from essential_sparsity.tasks.precision import ClippedBf16

OWN_TRAINER_KEYS = ("checkpoint_minutes", "checkpoint_steps", "validate", "max_tokens")


@dataclasses.dataclass
class Stage:
    """The parts of one training, in the order in which they are used: data, model, masks, trainer.

    Each of several ranks has one of its own; rank 0 writes the run folder.
    """

    backbone: Any
    data: Any
    task: Callable[..., LightningModule]
    pruner: Any
    sparsity: Fraction | None
    seed: int
    settings: dict[str, Any]
    callbacks: tuple[Callback, ...]
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    body_seed: int | None = None  # of an untrained model's weights, where they are another run's

    def train(self, run: Run, *, keep: Sequence[str], record: Mapping[str, Any]) -> None:
        """Train, or go on from the run's checkpoint, and write the run folder; its loggers are open meanwhile."""
        makers = self.settings.pop("logger", None) or ()
        with opened(makers if is_first() else (), run) as loggers:
            self.settings["logger"] = loggers or False
            self._train(run, keep=keep, record=record)

    def _train(self, run: Run, *, keep: Sequence[str], record: Mapping[str, Any]) -> None:
        started = time.monotonic()
        module, architecture, batches = self._built()
        pruning = PruningCallback(self.pruner, sparsity=self.sparsity, architecture=architecture, batches=batches)
        loss, budget = TrainingLoss(), Budget() if hasattr(module, "features") else None
        loader = self.data.train_dataloader()
        steps = [int(part.removeprefix("step=")) for part in keep if part.startswith("step=")]
        snapshots = [
            Snapshot(step, kept(run, f"step={step}"), self.backbone, lambda trainer: _exported(self._whole(trainer)))
            for step in steps
        ]
        measuring = [callback for callback in (pruning, loss, budget) if callback is not None]
        trainer, checkpoint = self._trainer(run, loader, [*measuring, *snapshots], architecture)
        resumed = checkpoint.path if checkpoint.path.is_file() else None
        self._fit(trainer, module, loader, resumed)
        module = self._whole(trainer)
        part_ways()
        if not trainer.is_global_zero:
            return

        masks = with_parent(pruning.masks, self.inputs)
        metrics = self._result(run, module, masks, architecture, precision=str(trainer.precision), record=record)
        if "model" in keep:
            shutil.rmtree(run.model, ignore_errors=True)
            with atomic_folder(run.model) as temporary:
                self.backbone.save(_exported(module), temporary)
        metrics["metrics"]["train/loss"] = loss.value
        metrics |= {
            "seconds": round(time.monotonic() - started, 3),
            "steps": trainer.global_step,
            "resumed": resumed is not None,
            "device": str(trainer.strategy.root_device),
            "num_devices": trainer.world_size,
            "num_parameters": sum(parameter.numel() for parameter in _exported(module).parameters()),
            "pruning": {**pruning.notes, **origin_note(self.pruner, self.inputs)},
        }
        metrics |= {} if budget is None else {"num_images": budget.num_images, "train_flops": budget.train_flops}
        run.finish(metrics, keep_checkpoints="checkpoints" in keep)

    def _built(self) -> tuple[LightningModule, Any, Any]:
        """Prepare the data and build the model: the module, its architecture, what a calibrated pruner reads."""
        preprocessing = self.backbone.preprocessing()
        self.data.prepare(preprocessing)
        self.data.seed(derive(self.seed, "order"))
        batches = calibration_batches(self.pruner, [self.sparsity], preprocessing, self.data)
        return *self._module(), batches

    def _module(self) -> tuple[LightningModule, Any]:
        """Build the model and the module around it, the same at each call; give the model's architecture, too."""
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
        return module, self.backbone.architecture(model)

    def _whole(self, trainer: Trainer) -> LightningModule:
        """Give the trained module as one device has it; all ranks put shards together, in a new one on rank 0."""
        module = trainer.lightning_module
        if not isinstance(trainer.strategy, ShardedBlocks):
            return module
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            module = self._module()[0]
            module.load_state_dict(state)
        return module.to(trainer.strategy.root_device)

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
        weights = {n: weight.detach() for n, weight in prunable_weights(_exported(module), architecture).items()}
        run.write_layers(layer_rows(weights, masks, architecture))
        masks.save(run.path / "masks.safetensors")
        requested = self.pruner.resolve(self.sparsity)
        metrics = result(predictions, metric=self.data.metric, masks=masks, requested=requested, record=record)
        metrics["metrics"] |= details(predictions, self.data, module)
        return metrics

    def _fit(self, trainer: Trainer, module: LightningModule, loader: Any, resumed: Path | None) -> None:
        with warnings.catch_warnings(), preemption.training():
            warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning's own use of a name that torch renames
            warnings.filterwarnings("ignore", ".*`srun` command is available.*")  # on a login node, too
            warnings.filterwarnings("ignore", ".*Grad strides do not match bucket view.*")  # DDP, of 1 × 1 kernels
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
                vars(error).setdefault("step", trainer.global_step)  # for failure.json
                raise
        module.to(trainer.strategy.root_device)

    def _trainer(
        self, run: Run, loader: Any, measuring: Sequence[Callback], architecture: Any
    ) -> tuple[Trainer, CheckpointEvery]:
        own = {key: value for key, value in self.settings.items() if key not in OWN_TRAINER_KEYS}
        settings: dict[str, Any] = {"max_epochs": 3, "devices": 1, **own}
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
            **for_trainer(settings, architecture),
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


def _exported(module: Any) -> Any:
    """Give the model of a module that is measured and saved."""
    return getattr(module, "exported", module.model)
