"""How often the interval of essential sparsity holds: simulated curves of known truth.

    python -m tests.bench.coverage            # whole: 1,000 simulations of each of 16 settings
    python -m tests.bench.coverage --share 0.05
    python -m tests.bench.coverage --spread 0.015     # seeds that differ by more than the tolerance

Truth is the first crossing of −ε by the true curve; a dip that comes back is measured against the crossing of the
antitonic fit of the truth, which is what the estimate estimates.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtr

from essential_sparsity.analysis.crossing import antitonic, first_crossing
from essential_sparsity.analysis.curves import SparsityCurve
from essential_sparsity.analysis.essential import locate_essential_sparsity

LEVELS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
EPSILON = 0.01
DENSE = 0.85
FINE = np.linspace(0, 0.9, 9001)


def sharp(sparsity: np.ndarray) -> np.ndarray:
    """Flat, then a cliff near 0.63."""
    return -0.35 * (expit((sparsity - 0.7) / 0.02) - expit(-0.7 / 0.02))


def gentle(sparsity: np.ndarray) -> np.ndarray:
    """A slow slide that passes one point near 0.38."""
    return -0.07 * sparsity**2


def bump(sparsity: np.ndarray) -> np.ndarray:
    """Better than dense around 0.3, then a fall: rises before it turns."""
    return 0.012 * np.exp(-(((sparsity - 0.3) / 0.12) ** 2)) - 0.25 * sparsity**6


def dip(sparsity: np.ndarray) -> np.ndarray:
    """Leaves the band at 0.4, comes back, then falls."""
    return -0.015 * np.exp(-(((sparsity - 0.4) / 0.06) ** 2)) - 0.3 * sparsity**8


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"sharp": sharp, "gentle": gentle, "bump": bump, "dip": dip}


@dataclass(frozen=True)
class Setting:
    """One cell of the coverage table."""

    shape: str
    num_seeds: int
    num_rows: int

    def truth(self) -> float:
        """True essential sparsity."""
        if self.shape == "dip":
            return float(first_crossing(LEVELS, antitonic(dip(LEVELS)[None]), EPSILON)[0])
        curve = SHAPES[self.shape](FINE)
        return float(FINE[np.argmax(curve < -EPSILON)])


SETTINGS = [Setting(shape, seeds, rows) for shape in SHAPES for seeds in (2, 5) for rows in (400, 5000)]


def simulate(setting: Setting, random: np.random.Generator, *, seed_spread: float = 0.005) -> SparsityCurve:
    """Draw one experiment: rows differ in difficulty, seeds in luck; a pruned run flips about a tenth of the rows.

    A row is correct where Φ(its latent score) lies under the run's accuracy. `seed_spread` is the standard deviation of
    one run's true accuracy.
    """
    levels, seeds, rows = len(LEVELS), setting.num_seeds, setting.num_rows
    draw = lambda *shape: random.standard_normal(shape, dtype=np.float32)  # noqa: E731
    latent = np.sqrt(0.75) * draw(1, 1, rows) + np.sqrt(0.15) * draw(1, seeds, rows)
    latent = latent + np.sqrt(0.10) * draw(levels, seeds, rows)
    share = DENSE + SHAPES[setting.shape](LEVELS)[:, None] + seed_spread * random.normal(size=(levels, seeds))
    return SparsityCurve.from_scores(LEVELS.tolist(), ndtr(latent) < share[:, :, None], chance=0.5)


@dataclass(frozen=True)
class Coverage:
    """What a number of simulations of one setting showed."""

    setting: Setting
    truth: float
    num_simulations: int
    interval: float  # share of intervals that hold the truth
    free: float  # share of runs in which what is called free is free
    costly: float  # share of runs in which what is called costly is costly
    width: float  # mean width of the interval; an open end counts as the top of the grid
    statuses: dict[str, int]


def coverage(
    setting: Setting, *, num_simulations: int, num_resamples: int = 500, seed_spread: float = 0.005, seed: int = 0
) -> Coverage:
    """Share of intervals that hold the true essential sparsity."""
    truth, random = setting.truth(), np.random.default_rng((seed, SETTINGS.index(setting)))
    outside = LEVELS[SHAPES[setting.shape](LEVELS) < -EPSILON]
    held, free, costly, width, statuses = [], [], [], [], {}
    for _ in range(num_simulations):
        found = locate_essential_sparsity(
            simulate(setting, random, seed_spread=seed_spread), num_resamples=num_resamples
        )
        statuses[found.status] = statuses.get(found.status, 0) + 1
        low = 0.0 if found.ci_low is None else found.ci_low
        high = np.inf if found.ci_high is None else found.ci_high
        held.append(low <= truth <= high)
        free.append(not (found.free_up_to is not None and (outside <= found.free_up_to).any()))
        costly.append(found.costly_from is None or found.costly_from in outside)
        width.append(min(high, LEVELS[-1]) - low)
    return Coverage(
        setting, truth, num_simulations, float(np.mean(held)), float(np.mean(free)), float(np.mean(costly)),
        float(np.mean(width)), statuses,
    )  # fmt: skip


def all_coverages(
    *, share: float = 1.0, num_resamples: int = 500, seed_spread: float = 0.005, seed: int = 0
) -> Iterator[Coverage]:
    """The whole table, or a share of its 1,000 simulations per setting."""
    for setting in SETTINGS:
        yield coverage(
            setting,
            num_simulations=round(1000 * share),
            num_resamples=num_resamples,
            seed_spread=seed_spread,
            seed=seed,
        )


def main(arguments: list[str]) -> int:
    """Print the table; exit code 1 when an interval covers less than 0.93."""
    parser = argparse.ArgumentParser(description="Coverage of the essential-sparsity interval on simulated curves.")
    parser.add_argument("--share", type=float, default=1.0, help="share of the 1,000 simulations per setting")
    parser.add_argument("--spread", type=float, default=0.005, help="standard deviation of a run's true accuracy")
    asked = parser.parse_args(arguments)
    print(
        f"{'curve':8}{'seeds':>6}{'rows':>6}{'truth':>7}{'cover':>7}{'free':>7}{'costly':>7}{'width':>7}{'s':>6} status"
    )
    worst, start = 1.0, time.perf_counter()
    for found in all_coverages(share=asked.share, seed_spread=asked.spread):
        worst, now = min(worst, found.interval), time.perf_counter()
        numbers = f"{found.truth:7.3f}{found.interval:7.3f}{found.free:7.3f}{found.costly:7.3f}{found.width:7.2f}"
        statuses = " ".join(f"{name}:{count}" for name, count in sorted(found.statuses.items()))
        setting = f"{found.setting.shape:8}{found.setting.num_seeds:6d}{found.setting.num_rows:6d}"
        print(f"{setting}{numbers}{now - start:6.0f}  {statuses}", flush=True)
        start = now
    return int(worst < 0.93)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
