"""Every pair of masks, per weight and in total: similarity, chance, nestedness, and the ceilings of other seeds."""

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import pandas as pd

from essential_sparsity.pruning.architecture import kind_of, layer_of
from essential_sparsity.similarity.named import NamedMasks, differ, place_words, root_of

SIDES = ("first", "second")


def similarity_table(found: Sequence[NamedMasks], *, null: pd.DataFrame | None = None) -> pd.DataFrame:
    """Compare every pair of masks: one line per pair and weight, and one in total (`weight` = "total").

    Columns: first, second, differs, contrast (`omp – lottery, seed 0`: two pruners in one place at one sparsity),
    sparsity, other_sparsity, weight, layer, kind, those of `Masks.similarity`, then `ceiling` (mean cosine with the
    same masks of other seeds), `other_task` (of other tasks) and, with `null`, those of `displacement_null`. NaN where
    one is not known; the null says nothing of pairs of which its pruner chose neither side. Raises ValueError naming
    masks of different models.
    """
    lines: list[dict[str, Any]] = []
    for one, other in combinations(found, 2):
        about = {
            "first": one.label,
            "second": other.label,
            "differs": ", ".join(one.differs_from(other)),
            "contrast": _contrast(one, other),
            "sparsity": float(one.level),
            "other_sparsity": float(other.level),
        }
        for row in _similarity(one, other):
            name = str(row.pop("weight"))
            place = (math.nan, "") if name == "total" else (layer_of(name), kind_of(name))
            lines.append({**about, "weight": name, "layer": place[0], "kind": place[1], **row})
    _add_siblings(lines, "ceiling", {"seed"})
    _add_siblings(lines, "other_task", {"data", "task"})
    table = pd.DataFrame(lines).astype({"layer": "Int64"})
    if null is not None:
        table = table.merge(null, how="left", on=["sparsity", "other_sparsity", "weight"])
        chosen_by = {each.label: each.chosen_by for each in found}
        own = [table[side].map(chosen_by.get) == table["null_pruner"] for side in SIDES]
        table.loc[~(own[0] | own[1]), [name for name in null if name.startswith("null_")]] = math.nan
    return table


def _similarity(one: NamedMasks, other: NamedMasks) -> list[dict[str, Any]]:
    try:
        return one.masks.similarity(other.masks)
    except ValueError as error:
        raise ValueError(f"{one.label} and {other.label} belong to different models: {error}") from None


def _contrast(one: NamedMasks, other: NamedMasks) -> str:
    """Name a pair of two pruners at one sparsity and in one place; empty for any other pair, and for dense ones."""
    if one.pruner == other.pruner or not one.level or abs(one.level - other.level) > Fraction(1, 1000):
        return ""
    if any(differ(value, other.place.get(key)) for key, value in one.place.items() if root_of(key) != "file"):
        return ""
    known = {**other.place, **{key: value for key, value in one.place.items() if value is not None}}
    told = place_words({key: value for key, value in known.items() if root_of(key) in ("seed", "data")})
    return f"{_settings(one)} – {_settings(other)}" + (f", {told}" if told else "")


def _settings(named: NamedMasks) -> str:
    """Name the pruner with those of its settings that vary: `nm (of 4)`."""
    told = place_words({key: value for key, value in named.place.items() if root_of(key) == "pruner"})
    return f"{named.pruner} ({told})" if told else named.pruner


def _add_siblings(lines: Sequence[dict[str, Any]], column: str, kinds: set[str]) -> None:
    """Add the mean cosine of either side with other masks that differ from it in these keys alone.

    Equal masks tell nothing of how far others lie apart, and pairs of two sparsities have no ceiling.
    """
    known: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in lines:
        same = line["nested_in_other"] and line["contains_other"]
        if line["differs"] and not same and set(line["differs"].split(", ")) <= kinds:
            for side in SIDES:
                known[line[side], line["weight"]].append(line["cosine"])
    for line in lines:
        level = line["sparsity"] == line["other_sparsity"]
        cosines = [cosine for side in SIDES for cosine in known.get((line[side], line["weight"]), ())]
        line[column] = sum(cosines) / len(cosines) if cosines and level else math.nan
