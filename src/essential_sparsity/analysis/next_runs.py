"""Which runs to make next to find the turn: bisection where runs decide, confirming seeds where they do not.

A pure function of the runs that are there, so that a search goes on from its run folders and nothing else.
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from scipy.special import ndtr, stdtrit

from essential_sparsity.analysis.curves import Cell
from essential_sparsity.analysis.evidence import TOP, Evidence, judge, own_share, paired
from essential_sparsity.analysis.metrics import Floats

SPARE_LEVELS = 2
"""Levels that a deterministic search looks at beyond bisection, where a dip could hide."""

WIDEST_GAP = 0.25
"""No two neighbouring levels before the turn lie further apart than this when confirming begins …"""

WIDE_GAP = 0.125
"""… nor than this while budget is left."""

NOTHING_LEFT = -10.0
"""What a model without weights loses at least, in ε: where to look for costly levels before one is known."""


@dataclass(frozen=True)
class Search:
    """What is searched for: the turn to ±`tolerance`, with at most `budget` runs, dense ones among them."""

    tolerance: float = 0.01
    budget: int | None = None  # None: what bisection needs, and then some
    seeds: tuple[int, ...] = (0,)  # every level has these; confirming ones follow the largest
    noisy: bool = False
    confidence: float = 0.95
    batch_size: int = 1  # runs that can run side by side

    def __post_init__(self) -> None:
        """Refuse what cannot be searched for, in one line."""
        for name in ("budget", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) and (name, value) != ("budget", None):
                raise ValueError(f"{name}={value!r} must be a whole number of runs")
        if not 0 < self.tolerance < 0.5:
            raise ValueError(f"tolerance={self.tolerance:g} lies outside (0, 0.5): it is half a width, try 0.01")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence:g} lies outside (0.5, 1): did you mean 0.95?")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1: runs that can run side by side")
        if self.noisy and len(self.seeds) < 2:
            raise ValueError(
                f"seed={','.join(map(str, self.seeds))}: one seed says nothing of the noise between runs; "
                "use seed=0,1,2, or hydra.sweeper.noise=false where a run always ends the same"
            )
        if not self.noisy and len(self.seeds) > 1:
            raise ValueError(
                f"seed={','.join(map(str, self.seeds))} beside noise=false: a curve without noise takes one seed"
            )
        if self.budget is not None and self.budget < self.needed:
            times = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "1 seed"
            raise ValueError(
                f"budget={self.budget} is below the {self.needed} runs that bisection to ±{self.tolerance:g} needs "
                f"with {times}: raise it, or tolerance"
            )

    @property
    def at_once(self) -> int:
        """Levels that are visited side by side."""
        return max(1, self.batch_size // len(self.seeds))

    @property
    def needed(self) -> int:
        """Runs of plain bisection, dense ones too: each round of k levels makes the bracket k + 1 times narrower."""
        rounds = math.ceil(math.log(TOP / (2 * self.tolerance), self.at_once + 1) - 1e-9)
        return len(self.seeds) * (1 + max(1, rounds) * self.at_once)

    @property
    def limit(self) -> int:
        """Runs that may be made."""
        if self.budget is not None:
            return self.budget
        return math.ceil(1.5 * self.needed) if self.noisy else self.needed + SPARE_LEVELS

    @property
    def decimals(self) -> int:
        """Digits of a level: ten times finer than the tolerance."""
        return max(2, math.ceil(-math.log10(self.tolerance) - 1e-9) + 1)

    def many_seeds(self, *, lost: Set[int] = frozenset()) -> list[int]:
        """The seeds in the order in which they are used, as many as the limit could pay."""
        more = islice(count(max(self.seeds) + 1), self.limit)
        return [seed for seed in (*self.seeds, *more) if seed not in lost]


def next_runs(
    search: Search,
    values: Mapping[Cell, float],
    *,
    epsilon: float,
    grain: float = 0.0,
    lost: Set[Cell] = frozenset(),
) -> list[Cell]:
    """Choose the runs to make after those that are there; an empty list ends the search.

    `values` holds the metric of finished runs by (sparsity, seed), `lost` those that failed: they count as spent, and
    a seed whose dense run failed serves no level.
    """
    if not values and not lost:
        return [(level, seed) for level in (0.0, *_spread(search, 0.0, TOP, [], [])) for seed in search.seeds]
    seeds = search.many_seeds(lost={seed for level, seed in lost if level == 0.0})
    base = [seed for seed in seeds[: len(search.seeds)] if (0.0, seed) in values]
    found = judge(values, epsilon=epsilon, confidence=search.confidence, noisy=search.noisy, grain=grain)
    if not _can_go_on(search, base, values, lost):
        return []
    left = search.limit - len(values) - len(lost)
    affordable = min(search.at_once, left // len(base))
    done = found.high - found.low <= 2 * search.tolerance + 1e-9
    if affordable and not done and (levels := _levels(search, found, affordable)):
        return [(level, seed) for level in levels for seed in base]
    if search.noisy and not done and (cells := _confirm(search, found, seeds, values, lost, left)):
        return cells
    check = _middle_of_gap(found, WIDE_GAP, search.decimals)
    return [(check, seed) for seed in base] if affordable and check is not None else []


def _can_go_on(search: Search, base: Sequence[int], values: Mapping[Cell, float], lost: Set[Cell]) -> bool:
    """Whether dense runs and every visited level have enough seeds to say anything."""
    least = 2 if search.noisy else 1
    there = paired(values)
    visited = {level for level, _ in (*values, *lost) if level}
    return len(base) >= least and all(len(there.get(level, {})) >= least for level in visited)


def _levels(search: Search, found: Evidence, most: int) -> list[float]:
    """New levels where the turn may lie, none where an open level already stands in the way of knowing better."""
    inside = (found.levels > found.low) & (found.levels < found.high)
    among, free = found.levels[inside].tolist(), found.probability_free()[inside].tolist()
    knots, shares = _posterior(found.low, found.high, among, free)
    first, last = np.interp([0.25, 0.75], shares, knots)
    if any(first - search.tolerance <= level <= last + search.tolerance for level in among):
        check = _middle_of_gap(found, WIDEST_GAP, search.decimals)
        return [] if check is None else [check]
    return _spread(search, found.low, found.high, among, free, most)


def _posterior(low: float, high: float, among: Sequence[float], free: Sequence[float]) -> tuple[Floats, Floats]:
    """Distribution of the crossing between two levels, as knots and cumulative shares.

    Uniform in length, times how likely every level before it is free and every level behind it costly.
    """
    knots = np.array([low, *among, high])
    certain = np.clip(np.array(free, np.float64), 1e-4, 1 - 1e-4)
    before = np.concatenate([[1.0], np.cumprod(certain)])
    behind = np.concatenate([np.cumprod((1 - certain)[::-1])[::-1], [1.0]])
    weights = np.diff(knots) * before * behind
    return knots, np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])


def _spread(
    search: Search, low: float, high: float, among: Sequence[float], free: Sequence[float], most: int | None = None
) -> list[float]:
    """Levels that split the distribution of the crossing evenly: one is its median, plain bisection without noise."""
    most = search.at_once if most is None else most
    knots, shares = _posterior(low, high, among, free)
    step = 10.0**-search.decimals
    levels = np.interp(np.arange(1, most + 1) / (most + 1), shares, knots)
    rounded = (round(float(np.clip(level, step, TOP - step)), search.decimals) for level in levels)
    return [level for level in dict.fromkeys(rounded) if level not in among and low < level < high]


def _middle_of_gap(found: Evidence, limit: float, decimals: int) -> float | None:
    """Middle of the widest gap between levels before the turn (the last of several); None below the limit."""
    before = np.concatenate([[0.0], found.levels[found.levels <= found.low]])
    gaps = np.round(np.diff(before), decimals)
    if not len(gaps) or gaps.max() <= limit:
        return None
    widest = int(np.flatnonzero(gaps == gaps.max())[-1])
    return round(float(before[widest] + before[widest + 1]) / 2, decimals)


# ---- confirming seeds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Option:
    """A level with so many seeds, and what it promises: sparsity gained per run."""

    level: float
    num_seeds: int
    gain: float
    cost: int


def _confirm(
    search: Search, found: Evidence, seeds: Sequence[int], values: Mapping[Cell, float], lost: Set[Cell], left: int
) -> list[Cell]:
    """Runs that promise to narrow the bracket most per run, on either side; none where nothing is to be hoped for."""
    num_dense = sum(level == 0.0 for level, _ in values)
    options = [_best(search, found, num_dense, left, side) for side in (1, -1)]
    promising = [option for option in options if option is not None and option.gain > search.tolerance / 20]
    promising.sort(key=lambda option: -option.gain / option.cost)
    chosen: list[Cell] = []
    for option in promising[: 2 if search.at_once > 1 else 1]:
        wanted = [(level, seed) for level in (0.0, option.level) for seed in seeds[: option.num_seeds]]
        new = [cell for cell in wanted if cell not in values and cell not in lost and cell not in chosen]
        chosen += new if len(chosen) + len(new) <= left else []
    return chosen


def _best(search: Search, found: Evidence, num_dense: int, left: int, side: int) -> _Option | None:
    """Best level to prove free (`side` 1) or costly (−1): expected gain over cost, over levels and numbers of seeds."""
    inside = np.flatnonzero((found.levels > found.low) & (found.levels < found.high))
    if not len(inside):
        return None
    k = int(inside[0] if side > 0 else inside[-1])
    end, edge = (found.low if side > 0 else found.high), float(found.levels[k])
    step = search.tolerance / 2
    between = edge + (end - edge) * np.arange(1, max(2, math.ceil(abs(end - edge) / step))) * step / abs(end - edge)
    levels = np.concatenate([[edge], np.round(between[(between - end) * (between - edge) < 0], search.decimals)])
    have = np.where(np.arange(len(levels)) == 0, found.counts[k], 0)[:, None]
    least, most = len(search.seeds), max(int(found.counts[k]), num_dense) + left
    num = np.arange(least, most + 1)[None]
    cost = (num - have) + np.maximum(0, num - num_dense)
    known = np.concatenate([[0.0], found.levels, [TOP]])
    fitted = np.concatenate([[0.0], found.fitted, [min(found.fitted[-1], NOTHING_LEFT * found.epsilon)]])
    margin = side * (np.interp(levels, known, fitted)[:, None] + found.epsilon)
    variance = float(found.variances[k])
    freedom = np.maximum(found.freedom[k], 0.5) + num - np.maximum(have, 1)  # new seeds tell of the noise, too
    quantile = stdtrit(freedom, 1 - own_share(search.confidence))
    doubt = np.interp(levels, known, np.concatenate([[0.0], found.errors**2, [0.0]]))[:, None]
    added = np.maximum(variance / np.maximum(have, 1) - variance / num, 0.0)
    spread = np.sqrt(np.where(have > 0, added, doubt + variance / num))
    proven = ndtr((margin - quantile * np.sqrt(variance / num)) / np.maximum(spread, 1e-12))
    gain = np.where((cost > 0) & (cost <= left), np.abs(levels - end)[:, None] * proven, 0.0)
    i, j = np.unravel_index(int((gain / np.maximum(cost, 1)).argmax()), gain.shape)
    return _Option(float(levels[i]), int(num[0, j]), float(gain[i, j]), max(int(cost[i, j]), 1))
