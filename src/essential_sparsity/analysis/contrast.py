"""Two pre-trainings side by side: essential sparsity with pre-training seeds as replicates, and budgets made equal.

METHODS: fine-tuning seeds of one checkpoint say nothing about pre-training, so a difference is a mean over pairs of
pre-trainings of one seed, its interval Student's over these pairs, and under 6 pairs there is no p-value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

from essential_sparsity.analysis.crossing import antitonic, first_crossing
from essential_sparsity.analysis.curves import SparsityCurve
from essential_sparsity.analysis.levels import finite
from essential_sparsity.analysis.metrics import Floats

FEWEST_FOR_P = 6
"""Pairs of pre-trainings under which no p-value is given."""

Replica = tuple[SparsityCurve, Mapping[int, int]]
"""A curve, and which pre-training seed each of its seeds was fine-tuned from."""


# --- essential sparsity, pre-training by pre-training -----------------------------------------------------------------


def replicate_crossings(replicas: Sequence[Replica], *, epsilon: float, floor: float | None = None) -> dict[int, float]:
    """Essential sparsity of every pre-training: its seed → the first crossing of −ε, +inf where it never turned.

    All fine-tunings of one pre-training are averaged first. With `floor` the metric itself is asked for in the place
    of its loss: how far one can prune until it falls below that value (0 where the dense runs lie below already).
    """
    lines: dict[int, list[tuple[Floats, Floats]]] = {}
    for curve, origin in replicas:
        levels, seeds = curve.complete()
        values = curve.points.pivot_table(index="sparsity", columns="seed", values="value")
        for seed in seeds if len(levels) > 1 else ():
            lines.setdefault(origin[seed], []).append((np.array(levels), values.loc[levels, seed].to_numpy(float)))
    return {seed: _crossing(found, epsilon, floor) for seed, found in sorted(lines.items())}


def _crossing(lines: Sequence[tuple[Floats, Floats]], epsilon: float, floor: float | None) -> float:
    """First crossing of the mean of lines (levels, values), on the levels that all of them have."""
    common = sorted(set.intersection(*({*levels.tolist()} for levels, _ in lines)))
    mean = np.mean([values[np.isin(levels, common)] for levels, values in lines], axis=0)
    allowed = epsilon if floor is None else float(mean[0] - floor)
    if allowed <= 0:
        return 0.0
    return float(first_crossing(np.array(common), antitonic((mean - mean[0])[None]), allowed)[0])


@dataclass(frozen=True)
class Contrast:
    """Difference of the essential sparsities of two arms over pairs of pre-trainings that share a seed."""

    arm: str
    reference: str
    difference: float | None  # mean over the pairs; None where a pair is open
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None  # two-sided, paired t; None under 6 pairs
    num_pairs: int = 0
    confidence: float = 0.95
    pairs: tuple[dict[str, Any], ...] = ()  # pretraining_seed, arm, reference, difference; None: never turned
    reason: str = ""  # why there is no difference, or no interval

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary for contrasts.json."""
        return asdict(self)


def contrast(
    arm: str, reference: str, ours: Mapping[int, float], theirs: Mapping[int, float], *, confidence: float = 0.95
) -> Contrast:
    """Mean difference of two arms over the pre-training seeds that both have, with Student's interval.

    A pair in which one side never turned is open: its difference is not a number, and the mean is not given. Raises
    ValueError for a confidence outside (0.5, 1).
    """
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence={confidence} lies outside (0.5, 1): did you mean 0.95?")
    shared = sorted(ours.keys() & theirs.keys())
    with np.errstate(invalid="ignore"):
        apart = np.array([ours[seed] - theirs[seed] for seed in shared])
    pairs = tuple(
        {"pretraining_seed": seed, "arm": finite(ours[seed]), "reference": finite(theirs[seed]),
         "difference": finite(float(each))}
        for seed, each in zip(shared, apart)
    )  # fmt: skip
    blank = {"num_pairs": len(shared), "confidence": confidence, "pairs": pairs}
    if not shared:
        return Contrast(arm, reference, None, reason="no pre-training is finished and above chance in both", **blank)
    if not np.isfinite(apart).all():
        open_seeds = ", ".join(str(seed) for seed, each in zip(shared, apart) if not np.isfinite(each))
        return Contrast(arm, reference, None, reason=f"never turned on the grid: pre-training {open_seeds}", **blank)
    mean = float(apart.mean())
    if len(shared) == 1:
        return Contrast(arm, reference, mean, reason="one pre-training each: no interval over pre-trainings", **blank)
    error = float(apart.std(ddof=1) / np.sqrt(len(shared)))
    reach = float(stdtrit(len(shared) - 1, (1 + confidence) / 2)) * error
    p = None
    if len(shared) >= FEWEST_FOR_P:
        p = float(2 * stdtr(len(shared) - 1, -abs(mean) / error)) if error else float(mean == 0)
    reason = "" if p is not None else f"fewer than {FEWEST_FOR_P} pairs: no p-value"
    return Contrast(arm, reference, mean, mean - reach, mean + reach, p, reason=reason, **blank)


# --- budgets made equal -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pretraining:
    """One pre-training's budget and what it had reached on the way; tables by images seen."""

    num_images: float
    train_flops: float
    probes: pd.DataFrame  # num_images, knn, linear; ascending
    shares: pd.DataFrame  # num_images, near_zero; ascending


MATCHES = ("images", "flops", "probe")
COLUMNS = ("num_images", "train_flops", "knn", "linear", "near_zero")


def matched(ours: Pretraining, theirs: Pretraining) -> pd.DataFrame:
    """What two pre-trainings had reached at equal images, equal FLOPs and equal k-NN accuracy of their features.

    Equal means: as far as the side went that went less far; the other is read off on the way, linearly between its
    probes and records. One line per match and side (ours, theirs): match, side, num_images, train_flops, knn, linear,
    near_zero; NaN where a side never reached it or did not record it.
    """
    lines = []
    for match in MATCHES:
        for side, each, at in zip(("ours", "theirs"), (ours, theirs), _equal(match, ours, theirs)):
            lines.append({"match": match, "side": side, **_reached(each, at)})
    return pd.DataFrame(lines, columns=["match", "side", *COLUMNS])


def _equal(match: str, ours: Pretraining, theirs: Pretraining) -> tuple[float, float]:
    """Images that each side has seen when the two are equal."""
    if match == "images":
        fewest = float(np.minimum(ours.num_images, theirs.num_images))  # NaN where one is not known
        return fewest, fewest
    if match == "flops":
        least = float(np.minimum(ours.train_flops, theirs.train_flops))
        first, second = (least / each.train_flops * each.num_images for each in (ours, theirs))
        return first, second
    known = [each.probes.dropna(subset=["knn"]) for each in (ours, theirs)]
    if any(table.empty for table in known):
        return float("nan"), float("nan")
    level = min(float(table["knn"].iloc[-1]) for table in known)
    first, second = (images_at(table, level) for table in known)
    return first, second


def images_at(probes: pd.DataFrame, level: float) -> float:
    """Images seen when the k-NN accuracy first reached a level, linearly between probes; NaN where it never did."""
    images, values = (probes[name].to_numpy(float) for name in ("num_images", "knn"))
    reached = np.flatnonzero(values >= level)
    if not len(reached):
        return float("nan")
    last = int(reached[0])
    if last == 0:
        return float(images[0])
    part = (level - values[last - 1]) / (values[last] - values[last - 1])
    return float(images[last - 1] + part * (images[last] - images[last - 1]))


def _reached(side: Pretraining, images: float) -> dict[str, float]:
    flops = side.train_flops * images / side.num_images if side.num_images else float("nan")
    tables = {"knn": side.probes, "linear": side.probes, "near_zero": side.shares}
    found = {name: _between(table, name, images) for name, table in tables.items()}
    return {"num_images": images, "train_flops": flops, **found}


def _between(table: pd.DataFrame, column: str, images: float) -> float:
    """A column at a number of images, linearly between its records; NaN outside of them."""
    known = table.dropna(subset=[column])
    if known.empty or not np.isfinite(images):
        return float("nan")
    at, values = known["num_images"].to_numpy(float), known[column].to_numpy(float)
    slack = 1e-9 * max(1.0, abs(images))  # FLOPs there and back again
    if images < at[0] - slack or images > at[-1] + slack:
        return float("nan")
    return float(np.interp(images, at, values))
