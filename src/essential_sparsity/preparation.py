"""What comes before any weight is pruned: input hashes, a pruner's files and batches, where stored masks come from."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.inputs import own_code
from essential_sparsity.pruning import Masks
from essential_sparsity.pruning.architecture import prunable_names

log = logging.getLogger(__name__)


def inputs_of(backbone: Any, data: Any, task: Any, pruner: Any) -> dict[str, str]:
    """Give a hash (or hub revision) for each input of a run: weights, tokenizer, data, stored masks, one's own code."""
    found = {**backbone.inputs(), **data.inputs()}
    parts: list[Any] = [pruner, getattr(pruner, "calibration", None)]
    for part in parts:
        if hasattr(part, "inputs"):
            found |= part.inputs()
    of_pruner = [getattr(pruner, name, None) for name in ("score", "allocation", "pattern")]
    return found | own_code(backbone, data, task, *parts, *of_pruner)


def inputs_if_there(backbone: Any, data: Any, task: Any, pruner: Any) -> dict[str, str] | None:
    """Give the hashes of a run's inputs, or None where they are not at hand (moved away, or a hub that is offline)."""
    path = getattr(backbone, "path", None)
    if path is not None and not Path(path).exists():
        return None
    try:
        return inputs_of(backbone, data, task, pruner)
    except (OSError, ValueError):
        return None


def head_of(task: Any) -> dict[str, str]:
    """Give what a backbone's `build` must be told where a task needs another head than a classification's."""
    while hasattr(task, "func"):  # a partial of a partial: Hydra's own type does not flatten
        task = task.func
    head = getattr(task, "head", None)
    return {} if head is None else {"head": head}


def check_trainable(data: Any) -> None:
    """Raise ValueError for data that are only evaluated."""
    if getattr(data, "zero_shot", False):
        raise ValueError(
            f"data={type(data).__name__} has rows to evaluate, none to train on: use essential-sparsity evaluate"
        )


def refuse_own_weights(module: nn.Module, model_weights: Iterable[str]) -> None:
    """Raise ValueError for a task with weights beside those that its model was built with: they are drawn anew."""
    known = {f"model.{name}" for name in model_weights}
    if own := [name for name, w in module.named_parameters() if w.requires_grad and name not in known]:
        raise ValueError(
            f"task {type(module).__name__} has weights of its own ({own[0]}, …), which every training draws anew: "
            "prune before fine-tuning, by pruner=omp"
        )


# --- large models -----------------------------------------------------------------------------------------------------

COPIED = 1 << 30
"""Bytes of weights up to which a copy of them is held; larger ones are read from their file again."""


def as_they_are(weights: Mapping[str, Tensor], architecture: Any, folder: Path | None) -> Mapping[str, Tensor]:
    """Give weights as they are now, whatever becomes of them: a copy, or their local file where they are large."""
    stored = None if folder is None or sum(w.nbytes for w in weights.values()) <= COPIED else Checkpoint.open(folder)
    if stored is not None:
        names = prunable_names(stored.names(), architecture)
        if all(name in names and stored.shape(names[name]) == tuple(weights[name].shape) for name in weights):
            return _FromFile(stored, {name: names[name] for name in weights})
    return {name: weight.clone() for name, weight in weights.items()}


@dataclasses.dataclass(frozen=True)
class _FromFile(Mapping[str, Tensor]):
    """Weights of a checkpoint by canonical name, each read when it is asked for."""

    stored: Checkpoint
    names: Mapping[str, str]

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[self.names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def refuse_off_loaded(model: nn.Module, levels: Iterable[Any]) -> None:
    """Raise ValueError where weights that are to be pruned are off-loaded: there is nothing to prune in place."""
    absent = sum(weight.is_meta for weight in model.parameters())
    if absent and any(level != 0 for level in levels):
        raise ValueError(
            f"{absent} weights are off-loaded (backbone.device_map), so they cannot be pruned in memory: "
            "essential-sparsity prune checkpoint=… out=… prunes the files, then evaluate those at sparsities=[0.0]"
        )


# --- what pruners need and say ----------------------------------------------------------------------------------------


def check_pruner(pruner: Any, sparsities: Iterable[Any], data: Any) -> None:
    """Check sparsities, and a pruner's files (stored masks, calibration text), before any model is loaded.

    Raises ValueError for a sparsity that contradicts the pruner, and for calibration text that holds evaluation rows.
    """
    calibration = getattr(pruner, "calibration", None)
    parts: list[Any] = [pruner, calibration]
    for part in parts:
        if hasattr(part, "check"):
            part.check()
    for sparsity in sparsities:
        pruner.resolve(sparsity)
    read = calibration.inputs() if calibration is not None else {}
    evaluated = {digest: name for name, digest in data.inputs().items() if "train" not in name and len(digest) == 64}
    for name, digest in read.items():
        if digest in evaluated:
            raise ValueError(
                f"calibration reads {name}, which is {evaluated[digest]}: calibrate on text without evaluation rows"
            )


def calibration_batches(
    pruner: Any, sparsities: Iterable[Any], preprocessing: Any, data: Any
) -> list[dict[str, Tensor]] | None:
    """Give the batches that a calibrated pruner reads, or None for the others and where all is dense."""
    calibration = getattr(pruner, "calibration", None)
    if calibration is None or all(pruner.resolve(sparsity) == 0 for sparsity in sparsities):
        return None
    return calibration.batches(preprocessing, data)


def weights_digest(inputs: Mapping[str, str]) -> str | None:
    """Give the hash of a run's starting weights from its inputs' hashes, as `Checkpoint.digest` does; None: no file."""
    weights = {name: value for name, value in inputs.items() if name.endswith(".safetensors")}
    own = {name: value for name, value in weights.items() if not name.startswith("masks/")}  # stored masks aside
    files = {name.rsplit("/", 1)[-1]: value for name, value in own.items()}
    files.pop("masks.safetensors", None)  # what `prune` leaves beside the weights
    if len(files) < 2:
        return next(iter(files.values()), None)
    lines = "".join(f"{name}:{files[name]}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def with_parent(masks: Masks, inputs: Mapping[str, str]) -> Masks:
    """Give masks that name the weights they were chosen on, unless they name what they come from already."""
    return masks if masks.parent is not None else dataclasses.replace(masks, parent=weights_digest(inputs))


def origin_note(pruner: Any, inputs: Mapping[str, str]) -> dict[str, str]:
    """Say where stored masks were chosen on other weights than those that they are applied to; else nothing."""
    origin, ours = pruner.origin() if hasattr(pruner, "origin") else None, weights_digest(inputs)
    if origin is None or ours is None or origin == ours:
        return {}
    log.warning("the masks were chosen on weights %s, this model has %s", origin[:8], ours[:8])
    return {"masks_chosen_on": origin, "applied_to": ours}
