"""How the sweeper that finds the turn does on simulated curves: runs spent, width, how often its bracket holds.

    python -m tests.bench.turning_point            # whole: 1,000 searches of each setting
    python -m tests.bench.turning_point --share 0.05

A run's value is the true curve, what its seed adds to all levels, and noise of its own; truth is the first crossing of
−ε by the true curve.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from essential_sparsity.analysis.evidence import Evidence, judge
from essential_sparsity.analysis.next_runs import Search, next_runs
from tests.bench.coverage import DENSE, EPSILON, SHAPES
from tests.bench.figure import Figure

FINE = np.linspace(0, 1, 10_001)
MANY = 1000
"""Searches of each setting, as a whole."""

DETERMINISTIC = 200
"""Random monotone curves without noise that are searched."""


def plateau(sparsity: np.ndarray) -> np.ndarray:
    """Falls by one and a half tolerances at 0.45 and stays there for long: the hardest that a monotone curve can be."""
    return -0.015 * expit((sparsity - 0.45) / 0.01) - 0.3 * sparsity**12


CURVES = {**SHAPES, "plateau": plateau}


@dataclass(frozen=True)
class Setting:
    """A true curve, the noise of one run, the seeds of every level and the runs that may be made."""

    curve: str
    noise: float  # standard deviation of one run's value
    num_seeds: int
    budget: int
    growing: float = 0.0  # how much noisier a run is for each tolerance that it loses

    def truth(self) -> float:
        """First crossing of −ε by the true curve."""
        return float(FINE[np.argmax(CURVES[self.curve](FINE) < -EPSILON)])


SETTINGS = [
    *(Setting(curve, noise, 3, 40) for curve in ("sharp", "gentle", "bump", "plateau") for noise in (0.001, 0.003)),
    *(Setting(curve, 0.005, 3, 60) for curve in ("sharp", "gentle")),
    Setting("sharp", 0.002, 3, 40, growing=0.5),
    Setting("gentle", 0.002, 2, 30),
    Setting("gentle", 0.003, 5, 60),
]

BUDGETS = (21, 30, 60, 120, 240)


def search_once(setting: Setting, random: np.random.Generator, *, tolerance: float = 0.01) -> tuple[Evidence, int]:
    """Search one simulated curve to its end; give what is known then, and the number of runs."""
    search = Search(
        tolerance=tolerance, budget=setting.budget, seeds=tuple(range(setting.num_seeds)), noisy=setting.noise > 0
    )
    values: dict[tuple[float, int], float] = {}
    of_seed = random.normal(scale=0.005, size=500)
    while cells := next_runs(search, values, epsilon=EPSILON):
        assert not set(cells) & values.keys()
        for level, seed in cells:
            true = float(CURVES[setting.curve](np.array(level)))
            noise = setting.noise * (1 + setting.growing * max(0.0, -true / EPSILON))
            values[level, seed] = DENSE + true + of_seed[seed] + random.normal(scale=noise or 0.0)
    assert len(values) <= search.limit
    return judge(values, epsilon=EPSILON, noisy=search.noisy), len(values)


@dataclass(frozen=True)
class Study:
    """What a number of searches of one setting showed."""

    setting: Setting
    truth: float
    num_searches: int
    holds: float  # share of brackets that hold the truth
    width: float  # median
    runs: float  # median
    error: float  # median distance of the estimate from the truth
    non_monotone: float  # share that is called so


def study(setting: Setting, num_searches: int, *, seed: int = 0) -> Study:
    """Search many simulated curves of one setting."""
    random = np.random.default_rng((seed, num_searches, len(setting.curve), setting.budget))
    truth, found = setting.truth(), [search_once(setting, random) for _ in range(num_searches)]
    holds = [each.low <= truth <= each.high for each, _ in found]
    errors = [abs(each.estimate - truth) for each, _ in found if each.estimate is not None]
    return Study(
        setting, truth, num_searches, float(np.mean(holds)), float(np.median([e.high - e.low for e, _ in found])),
        float(np.median([runs for _, runs in found])), float(np.median(errors)),
        float(np.mean([e.non_monotone for e, _ in found])),
    )  # fmt: skip


def random_curve(random: np.random.Generator) -> np.ndarray:
    """Draw a falling curve over `FINE`, steep or gentle."""
    turn, width, drop = random.uniform(0.05, 0.95), 10 ** random.uniform(-3, -0.5), random.uniform(0.05, 0.4)
    return -drop * (expit((FINE - turn) / width) - expit(-turn / width))


def deterministic(num_curves: int, *, seed: int = 0) -> tuple[int, float, float]:
    """Search curves without noise: the most evaluations that one took, the widest bracket, the share that holds."""
    random, search = np.random.default_rng(seed), Search()
    runs, widths, holds = [], [], []
    for _ in range(num_curves):
        curve, values = random_curve(random), {}
        while cells := next_runs(search, values, epsilon=EPSILON):
            values |= {cell: float(np.interp(cell[0], FINE, curve)) for cell in cells}
        found = judge(values, epsilon=EPSILON, noisy=False)
        below = curve < -EPSILON
        truth = float(FINE[below.argmax()]) if below.any() else 1.0
        runs.append(len(values))
        widths.append(found.high - found.low)
        holds.append(found.low <= truth + 1e-4 and truth <= found.high + 1e-4)
    return max(runs), max(widths), float(np.mean(holds))


def run(quick: bool = False) -> Iterator[Figure]:
    """Show evaluations, coverage and width; a grid of the same resolution takes 100 levels."""
    most, widest, holds = deterministic(20 if quick else DETERMINISTIC)
    of = "of 20" if quick else f"of {DETERMINISTIC} random falling curves"
    yield Figure("no noise: most evaluations to ±0.01, dense one too; a grid", most, 101, unit="", goal="≥ 11")
    yield Figure("no noise: widest bracket", widest, unit="", goal="≤ 0.02", limit_is=of)
    yield Figure("no noise: brackets that hold the truth", holds, unit="share", goal="≥ 1", limit_is=of)
    num = 5 if quick else MANY // 5
    for setting in SETTINGS:
        found = study(setting, num)
        growing = ", noisier as it falls" if setting.growing else ""
        what = f"{setting.curve}, noise {setting.noise:g}{growing}, {setting.num_seeds} seeds, {setting.budget} runs"
        rest = f"of {num}; median width {found.width:.3f}, {found.runs:.0f} runs, estimate off by {found.error:.3f}"
        yield Figure(f"{what}: brackets that hold", found.holds, unit="share", goal="≥ 0.95", limit_is=rest)
    for budget in BUDGETS:
        found = study(Setting("gentle", 0.003, 3, budget), num)
        rest = f"holds {100 * found.holds:.0f} %, {found.runs:.0f} runs"
        yield Figure(f"gentle, noise 0.003, {budget} runs: median width", found.width, unit="", limit_is=rest)
    found = study(Setting("dip", 0.0, 1, 9), 1)
    yield Figure("a dip at 0.4 without noise: called non-monotone", found.non_monotone, unit="share", limit_is="9 runs")


def main(arguments: list[str]) -> int:
    """Print the table; exit code 1 when a bracket holds in less than 95 % of the searches."""
    parser = argparse.ArgumentParser(description="The turning_point sweeper on simulated curves.")
    parser.add_argument("--share", type=float, default=1.0, help="share of the 1,000 searches per setting")
    asked, worst = parser.parse_args(arguments), 1.0
    budgets = [Setting("gentle", 0.003, 3, budget) for budget in BUDGETS]
    print(
        f"{'curve':9}{'noise':>7}{'seeds':>6}{'budget':>7}{'truth':>7}{'holds':>7}{'width':>7}{'error':>7}{'runs':>6}"
    )
    for setting in (*SETTINGS, *budgets):
        found = study(setting, round(MANY * asked.share))
        worst = min(worst, found.holds)
        numbers = f"{found.truth:7.3f}{found.holds:7.3f}{found.width:7.3f}{found.error:7.3f}{found.runs:6.0f}"
        print(f"{setting.curve:9}{setting.noise:7g}{setting.num_seeds:6}{setting.budget:7}{numbers}", flush=True)
    return int(worst < 0.95)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
