"""Fine-tune or pre-train one run, dense or masked, its parent first: plain Python, for apps, notebooks and sweepers."""

import dataclasses
import functools
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
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.callbacks.training_loss import TrainingLoss
from essential_sparsity.evaluation import inputs_if_there, layer_rows, predict, result, run_info
from essential_sparsity.pruning import Global, Magnitude, Pruner, Unstructured, exact_sparsity, prunable_weights
from essential_sparsity.runs import Run
from essential_sparsity.seeds import derive

OMP = Pruner(Magnitude(), Global(), Unstructured())
"""One-shot magnitude pruning: one threshold over all prunable weights."""

OWN_TRAINER_KEYS = ("checkpoint_minutes", "checkpoint_steps", "validate")


def fit(
    backbone: Any,
    data: Any,
    task: Callable[..., LightningModule],
    *,
    run: Run | Path | str,
    pruner: Pruner = OMP,
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
    `checkpoint_minutes`, `checkpoint_steps`, `validate`, and `logger`: callables that take `save_dir`. `parent` is a
    mapping of this function's own arguments: that run is finished first, and its `model/` is where this one starts.
    `keep` names what to keep: "model", "checkpoints". `record` is what run.json says was asked for; its `config`
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
            run.check_inputs(_inputs_if_there(backbone, data, parent))
            if not ("model" in keep and not run.model.is_dir()):
                return run.metrics
            warnings.warn(f"{run.path} is finished but has no model/: it is trained again for it", stacklevel=2)
        data.check()
        if parent is None:
            backbone.check()
        else:
            backbone = finish_parent(parent, backbone)
        inputs = {**backbone.inputs(), **data.inputs()}
        parent_id = None if parent is None else _as_run(parent["run"]).info["id"]
        run.start(run_info(record, inputs=inputs, parent=parent_id))
        stage = _Stage(backbone, data, task, pruner, sparsity, seed, dict(trainer or {}), tuple(callbacks))
        return stage.train(run, keep=keep, record=record)


def finish_parent(parent: Mapping[str, Any], backbone: Any) -> Any:
    """Finish a parent run, waiting for another process that is at it, and give `backbone` with the parent's model."""
    run = _as_run(parent["run"])
    keep = {"model", *parent.get("keep", ())}
    if not (run.finished and run.model.is_dir()):
        with Run(run.path.with_name(f".{run.path.name}.wait")).lock(wait=True):
            fit(**{**parent, "keep": sorted(keep)})
    return dataclasses.replace(backbone, path=str(run.model), pretrained=True)


def _as_run(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else Run(Path(run))


def _inputs_if_there(backbone: Any, data: Any, parent: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Give the hashes that a finished run is checked against; None where its inputs are not at hand any more."""
    if parent is not None:
        model = _as_run(parent["run"]).model
        if not model.is_dir():
            return None
        backbone = dataclasses.replace(backbone, path=str(model), pretrained=True)
    return inputs_if_there(backbone, data)


def _config_of(*arguments: Any) -> dict[str, Any]:
    """Give an identity to a call from Python: what its arguments say of themselves."""
    names = ("backbone", "data", "task", "pruner", "sparsity", "seed", "trainer", "parent")
    config: dict[str, Any] = {}
    for name, value in zip(names, arguments, strict=True):
        if isinstance(value, Mapping):
            config[name] = {key: _told(item) for key, item in value.items() if key not in ("run", "logger")}
        else:
            config[name] = _told(value)
    sparsity = config["sparsity"]
    return config | {"sparsity": None if sparsity is None else float(Fraction(arguments[4]))}


def _told(value: Any) -> Any:
    """Say what an argument is, the same in every process; ValueError where it cannot be said."""
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
    pruner: Pruner
    sparsity: Fraction | None
    seed: int
    settings: dict[str, Any]
    callbacks: tuple[Callback, ...]

    def train(self, run: Run, *, keep: Sequence[str], record: Mapping[str, Any]) -> dict[str, Any]:
        """Train, or go on from the run's checkpoint, and write the run folder."""
        started = time.monotonic()
        self.data.prepare(self.backbone.preprocessing())
        self.data.seed(derive(self.seed, "order"))
        model = self.backbone.build(num_labels=self.data.num_labels, seed=derive(self.seed, "head"))
        module, architecture = self.task(model, num_labels=self.data.num_labels), self.backbone.architecture(model)
        pruning = PruningCallback(self.pruner, sparsity=self.sparsity, architecture=architecture)
        loss = TrainingLoss()
        loader = self.data.train_dataloader()
        trainer, checkpoint = self._trainer(run, pruning, loss, loader)
        resumed = checkpoint.path if checkpoint.path.is_file() else None
        self._fit(trainer, module, loader, resumed)

        predictions = predict(module, self.data.evaluation_dataloaders(), precision=str(trainer.precision))
        run.write_predictions(predictions)
        weights = {name: weight.detach() for name, weight in prunable_weights(model, architecture).items()}
        run.write_layers(layer_rows(weights, pruning.masks, architecture))
        pruning.masks.save(run.path / "masks.safetensors")
        if "model" in keep:
            self.backbone.save(model, run.model)
        metrics = result(
            predictions, metric=self.data.metric, masks=pruning.masks, requested=self.sparsity, record=record
        )
        metrics["metrics"]["train/loss"] = loss.value
        metrics |= {
            "seconds": round(time.monotonic() - started, 3),
            "steps": trainer.global_step,
            "resumed": resumed is not None,
            "device": str(trainer.strategy.root_device),
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
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
        self, run: Run, pruning: PruningCallback, loss: TrainingLoss, loader: Any
    ) -> tuple[Trainer, CheckpointEvery]:
        settings = {key: value for key, value in self.settings.items() if key not in OWN_TRAINER_KEYS}
        if settings.get("devices", 1) not in (1, "1"):
            raise ValueError(
                f"trainer.devices={settings['devices']} is not supported yet: use 1, and sweep points side by side"
            )
        every = {
            key.removeprefix("checkpoint_"): self.settings[key] for key in OWN_TRAINER_KEYS[:2] if key in self.settings
        }
        checkpoint = CheckpointEvery(run.checkpoints, **every)
        loggers = [logger(save_dir=run.path) for logger in settings.pop("logger", None) or ()]
        trainer = Trainer(
            **{"max_epochs": 3, "devices": 1, "logger": loggers or False, **settings},
            callbacks=[StepSeed(self.seed), LoaderPosition(loader), pruning, loss, *self.callbacks, checkpoint],
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
