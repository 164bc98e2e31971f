"""Cross-validation: runs that differ in `data.fold` alone count as one, evaluated on the rows of all their folds."""

import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from essential_sparsity.runs import RunRecord, identity

POOLED = "all"
"""What stands for the fold of a run that is put together."""


@dataclass(frozen=True)
class FoldedRun(RunRecord):
    """The runs of one setting and seed over folds: name, layers and sparsity of the first, the rows of all."""

    folds: tuple[RunRecord, ...] = ()

    def predictions(self) -> pa.Table:
        """Read the predictions of all folds, one table after another."""
        return pa.concat_tables([record.predictions() for record in self.folds], promote_options="permissive")


def pool_folds(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Put the runs together that differ in `data.fold` alone; any others stay as they are, in order.

    A setting that lacks a fold which another one has is unfinished: its rows would not be those of the others.
    """
    found: dict[Hashable, list[RunRecord]] = defaultdict(list)
    for record in records:
        found[_setting(record)].append(record)
    wanted = {fold for record in records if (fold := _fold(record)) is not None}
    return [_pooled(members, len(wanted)) if len(wanted) > 1 else members[0] for members in found.values()]


def _fold(record: RunRecord) -> int | None:
    """Fold that a run evaluates, or None: data without folds."""
    data = record.config.get("data")
    fold = data.get("fold") if isinstance(data, dict) else None
    return fold if isinstance(fold, int) else None


def _setting(record: RunRecord) -> Hashable:
    """What the runs of one cross-validation share; a run without folds is alone."""
    if _fold(record) is None:
        return str(record.path)
    return json.dumps(identity(_with_fold(record.config)), sort_keys=True, default=str)


def _with_fold(config: dict[str, Any]) -> dict[str, Any]:
    """Give a configuration for all folds, its parents' (the rounds of a lottery) too."""
    told, data, parent = dict(config), config.get("data"), config.get("parent")
    if isinstance(data, dict) and isinstance(data.get("fold"), int):
        told["data"] = {**data, "fold": POOLED}
    if isinstance(parent, dict):
        told["parent"] = _with_fold(parent)
    return told


def _pooled(members: Sequence[RunRecord], num_folds: int) -> RunRecord:
    """Make one run of a setting's folds; where one is missing or failed, so has the whole."""
    first = members[0]
    if _fold(first) is None:
        return first
    ordered = sorted(members, key=lambda record: (_fold(record), str(record.path)))
    info = {**first.info, "config": _with_fold(first.config)}
    done = [record for record in ordered if record.finished]
    failure = next((record.failure for record in ordered if record.failure is not None), None)
    metrics = _metrics(done) if len({_fold(record) for record in done}) == num_folds else None
    return FoldedRun(ordered[0].path, info, metrics, None if metrics else failure, tuple(done))


def _metrics(done: Sequence[RunRecord]) -> dict[str, Any]:
    """Give what all folds share (metric, split, counts of weights), seconds in total, the mean final training loss."""
    every = [record.metrics or {} for record in done]
    losses = [loss for metrics in every if (loss := (metrics.get("metrics") or {}).get("train/loss")) is not None]
    return {
        **{name: value for name, value in every[0].items() if name != "value"},  # the rows give it
        "num_rows": sum(metrics.get("num_rows", 0) for metrics in every),
        "seconds": sum(metrics.get("seconds") or 0.0 for metrics in every),
        "metrics": {"train/loss": float(np.mean(losses))} if losses else {},
    }
