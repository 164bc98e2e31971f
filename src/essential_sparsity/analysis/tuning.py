"""`tuned=true`: each level has the best of several recipes, chosen on one half of the rows, told on the other."""

import json
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from essential_sparsity.analysis.grouping import without_rounds
from essential_sparsity.analysis.metrics import metric_named
from essential_sparsity.runs import RunRecord, flatten, identity

RECIPE = ("optimizer.lr", "trainer.max_epochs", "trainer.max_steps")
"""What the recipes of one setting differ in."""

TUNED = "tuned"
"""What stands for a recipe in the configuration of the chosen run."""

Factors = tuple[float, float]  # on the learning rate and on the epochs


@dataclass(frozen=True)
class TunedRun(RunRecord):
    """The run of the chosen recipe, with the rows on which it was not chosen."""

    source: RunRecord | None = None

    def predictions(self) -> pa.Table:
        """Read the odd rows' predictions."""
        assert self.source is not None
        table = self.source.predictions()
        split, row = (table[name].to_numpy(zero_copy_only=False) for name in ("split", "row"))
        return table.filter(pa.array(~is_even(split, row)))


def is_even(split: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Say which rows choose: every other of each split's ids in order, so that both halves see all of a file."""
    found = np.zeros(len(row), dtype=bool)
    for name in set(split):
        own = split == name
        found[own] = np.unique(row[own], return_inverse=True)[1] % 2 == 0
    return found


def choose_tuned(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Put the recipes of each setting and level together: all seeds of the best one; others stay as they are.

    The best has the highest mean of the metric over seeds on even rows, among the recipes that have finished as many
    seeds as any; a tie goes to the least change. Records that no factor was ever put to are given back.
    """
    if not any(record.info.get("tuning") for record in records):
        return list(records)
    settings: dict[Hashable, dict[Factors, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        settings[_setting(record)][factors_of(record)].append(record)
    return [_told(record, factors) for recipes in settings.values() for factors, record in _best(recipes)]


def factors_of(record: RunRecord) -> Factors:
    """Give a run's factors on the learning rate and on the epochs; 1 where it was not tuned."""
    found = record.info.get("tuning") or {}
    return float(found.get("lr", 1)), float(found.get("epochs", 1))


def recipe_words(factors: Factors) -> str:
    """Say a recipe: `lr × 2.5, epochs × 2`."""
    parts = [f"{name} × {factor:g}" for name, factor in zip(("lr", "epochs"), factors) if factor != 1]
    return ", ".join(parts) or "as it is"


def _setting(record: RunRecord) -> Hashable:
    """What the recipes and seeds (of pre-training, too) of one level share."""
    flat = flatten(identity(without_rounds(record.config)))
    kept = {key: value for key, value in flat.items() if key not in RECIPE and not key.endswith("seed")}
    return json.dumps(kept, sort_keys=True, default=str)


def _best(recipes: Mapping[Factors, Sequence[RunRecord]]) -> list[tuple[Factors, RunRecord]]:
    finished = {factors: [each for each in runs if each.finished] for factors, runs in recipes.items()}
    most = max(map(len, finished.values()))
    able = [factors for factors in sorted(finished, key=_change) if len(finished[factors]) == most]
    best = max(able, key=lambda factors: _score(finished[factors])) if most else able[0]
    return [(best, record) for record in recipes[best]]


def _change(factors: Factors) -> tuple[float, Factors]:
    return factors[0] * factors[1], factors


def _score(runs: Sequence[RunRecord]) -> float:
    return float(np.mean([_value(record, even=True) for record in runs]))


def _value(record: RunRecord, *, even: bool) -> float:
    """The metric on one half of the primary split's rows; least where it cannot be read."""
    metrics = record.metrics or {}
    try:
        rows: pd.DataFrame = record.predictions().to_pandas()
    except (OSError, ValueError):
        return -np.inf
    split = rows["split"].to_numpy(dtype=object)
    chosen = (split == metrics["split"]) & (is_even(split, rows["row"].to_numpy()) == even)
    return metric_named(metrics["metric"]).value(rows.loc[chosen])


def _told(record: RunRecord, factors: Factors) -> RunRecord:
    """Give a chosen run: no recipe in what tells curves apart, and the value of the rows that did not choose."""
    config: dict[str, Any] = dict(record.config)
    for key in RECIPE:
        node, _, name = key.partition(".")
        if isinstance(config.get(node), Mapping):
            config[node] = {**config[node], name: TUNED}
    info = {**record.info, "config": config, "choices": {**(record.info.get("choices") or {}), "recipe": TUNED}}
    metrics = record.metrics
    if metrics is not None:
        metrics = {**metrics, "value": _value(record, even=False), "recipe": recipe_words(factors)}
    return TunedRun(record.path, info, metrics, record.failure, record)
