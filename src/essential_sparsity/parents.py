"""Chains of runs: what a run starts from, and what a lottery round takes from the round before."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from essential_sparsity.checkpoints import Checkpoint, Renamed
from essential_sparsity.inputs import file_digest
from essential_sparsity.preparation import inputs_if_there
from essential_sparsity.pruning import Masks, prunable_names
from essential_sparsity.pruning.lottery import OMP, Lottery, Round
from essential_sparsity.runs import Run


def continued(backbone: Any, model: Path) -> Any:
    """Give a backbone that starts from the weights in a run's folder."""
    return dataclasses.replace(backbone, path=str(model), pretrained=True)


def starts_anew(pruner: Any, sparsity: Any) -> bool:
    """Say whether a run starts from what its parent started from: a lottery ticket, or a round that looks for one."""
    return isinstance(pruner, Lottery) and bool(pruner.resolve(sparsity))


def started_at(backbone: Any, pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None) -> Any:
    """Give the backbone with the weights that a run starts from: its own, its parent's, or for a round the first's."""
    if parent is None:
        if starts_anew(pruner, sparsity):
            raise ValueError(
                f"a ticket of sparsity {float(pruner.resolve(sparsity)):g} has no round before it: give parent=…, "
                "or run essential-sparsity lottery"
            )
        return backbone
    if not starts_anew(pruner, sparsity):
        return continued(backbone, as_run(parent["run"]).model)
    first = first_round(parent)
    if pruner.rewind:
        return continued(backbone, kept(as_run(first["run"]), f"step={pruner.rewind}"))
    return started_at(backbone, OMP, None, first.get("parent"))


def first_round(parent: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give the dense round that a chain of rounds began with."""
    while starts_anew(parent.get("pruner", OMP), parent.get("sparsity")) and parent.get("parent") is not None:
        parent = parent["parent"]
    return parent


def round_inputs(pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None) -> dict[str, str]:
    """Give the hashes of what a ticket's masks are ranked by: the round before; nothing for other runs."""
    if parent is None or not starts_anew(pruner, sparsity):
        return {}
    run = as_run(parent["run"])
    files = [*sorted(run.model.glob("*.safetensors")), run.path / "masks.safetensors"]
    return {f"round before: {file.name}": file_digest(file) for file in files}


def for_rewinding(pruner: Lottery, parent: Mapping[str, Any]) -> list[str]:
    """Name what the round before must keep: its model, and the first round the weights that all start from."""
    is_first = not starts_anew(parent.get("pruner", OMP), parent.get("sparsity"))
    return ["model", f"step={pruner.rewind}"] if pruner.rewind and is_first else ["model"]


def read_round(run: Run) -> Round:
    """Read what a finished round leaves."""
    stored = Checkpoint.open(run.model)
    names = prunable_names(stored)
    return Round(Renamed(stored, names), Masks.load(run.path / "masks.safetensors"))


def kept(run: Run, part: str) -> Path:
    """Give the folder in which a kept part lies."""
    return run.path / (part if part in ("model", "checkpoints") else f"model_at_{part}")


def as_run(run: Run | Path | str) -> Run:
    return run if isinstance(run, Run) else Run(Path(run))


def finished_inputs(
    backbone: Any, data: Any, task: Any, pruner: Any, sparsity: Any, parent: Mapping[str, Any] | None
) -> dict[str, str] | None:
    """Give the hashes that a finished run is checked against; None where its inputs are not at hand any more."""
    found = inputs_if_there(started_at(backbone, pruner, sparsity, parent), data, task, pruner)
    if found is None or (parent is not None and not as_run(parent["run"]).model.is_dir()):
        return None
    return found | round_inputs(pruner, sparsity, parent)
