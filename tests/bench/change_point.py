"""How often the rule for abrupt sparsification is wrong, and how often it finds a jump: simulated traces.

    python -m tests.bench.change_point                 # whole: 1,000 simulations of each null and of each jump
    python -m tests.bench.change_point --share 0.05

A trace has 201 records (10,000 steps, one every 50) or 61. A false alarm is any answer but `none`. Ramps of sigmoids
are from 10 to 90 % and last at least 8 records: what rises within fewer is a jump by the rule.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import erf, expit

from essential_sparsity.analysis.change_point import Series, judge
from essential_sparsity.analysis.jumps import NUM_RESAMPLES
from tests.bench.figure import Figure

NOISE = 0.002
"""Standard deviation of a record's share, in units of the trace's range: millions of weights have less."""

LEAST_RAMP = 8
SIZES, RAMPS = (0.05, 0.10, 0.15, 0.20, 0.40), (1, 3, 6)
MOST_ALARMS, LEAST_POWER = 0.02, 0.85

Random = np.random.Generator


def series(relative: np.ndarray, *, rate: np.ndarray | None = None, absolute: np.ndarray | None = None) -> Series:
    """Make what is judged from shares by record; `rate` is the learning rate between records."""
    num = len(relative)
    steps = 50 * np.arange(num)
    lr_sum = None if rate is None else np.concatenate([[0.0], np.cumsum(50 * rate[: num - 1])])
    absolute = relative if absolute is None else absolute
    return Series(steps, ("total",), relative[None], absolute[None], lr_sum, (4096 * steps).astype(np.float64))


# --- nothing abrupt happens -------------------------------------------------------------------------------------------


def white_noise(random: Random, num: int) -> Series:
    """Records that have nothing to do with each other."""
    return series(random.normal(size=num))


def autoregression(random: Random, num: int) -> Series:
    """AR(1) with coefficient 0.9."""
    drawn = random.normal(size=num + 100)
    for i in range(1, num + 100):
        drawn[i] += 0.9 * drawn[i - 1]
    return series(drawn[100:])


def random_walk(random: Random, num: int) -> Series:
    """A sum of independent increments."""
    return series(np.cumsum(random.normal(size=num)))


def sigmoid(ramp: float) -> Callable[[Random, int], Series]:
    """A smooth rise from 10 to 90 % within this share of the run."""

    def simulate(random: Random, num: int) -> Series:
        at = random.uniform(0.2, 0.8)
        smooth = expit((np.linspace(0, 1, num) - at) * 2 * np.log(9) / ramp)
        return series(smooth + _noise(random, num))

    return simulate


def warmup_and_decay(random: Random, num: int) -> Series:
    """Sparsity grows with the learning rate, which warms up over 10 % and decays linearly."""
    time = np.linspace(0, 1, num)
    rate = np.where(time < 0.1, time / 0.1, (1 - time) / 0.9)
    return _driven(random, rate)


def one_cycle(random: Random, num: int) -> Series:
    """Sparsity grows with the learning rate, which rises and falls along half a cosine each."""
    time = np.linspace(0, 1, num)
    rising, falling = (1 - np.cos(np.pi * time / 0.3)) / 2, (1 + np.cos(np.pi * (time - 0.3) / 0.7)) / 2
    return _driven(random, np.where(time < 0.3, 0.04 + 0.96 * rising, falling))


def decay_only(random: Random, num: int) -> Series:
    """All weights shrink together: the absolute share rises smoothly, the relative one does not."""
    factor = np.exp(-random.uniform(0.5, 3) * np.linspace(0, 1, num))
    absolute = erf(0.05 / factor / np.sqrt(2))
    return series(0.0399 + 1e-5 * random.normal(size=num), absolute=absolute + 1e-5 * random.normal(size=num))


def resume_seam(random: Random, num: int) -> Series:
    """A smooth rise; at a resume the rate is half as high for 3 records, then twice as high for one."""
    rate = np.exp(-3 * np.linspace(0, 1, num))
    at = int(random.integers(num // 5, 4 * num // 5))
    rate[at : at + 3] *= 0.5
    rate[at + 3] *= 2
    shares = np.concatenate([[0.0], np.cumsum(rate)[:-1]])
    return series(shares / np.ptp(shares) + _noise(random, num))


def _driven(random: Random, rate: np.ndarray) -> Series:
    shares = np.concatenate([[0.0], np.cumsum(rate)[:-1]])
    return series(shares / np.ptp(shares) + _noise(random, len(rate)), rate=rate)


def _noise(random: Random, num: int) -> np.ndarray:
    return NOISE * random.normal(size=num)


NULLS: dict[str, Callable[[Random, int], Series]] = {
    "white noise": white_noise,
    "AR(0.9)": autoregression,
    "random walk": random_walk,
    **{f"sigmoid, ramp {ramp:.0%} of the run": sigmoid(ramp) for ramp in (0.05, 0.1, 0.2, 0.5)},
    "warm-up and decay": warmup_and_decay,
    "one-cycle": one_cycle,
    "decay-only shrinkage": decay_only,
    "resume seam": resume_seam,
}
RAMP_OF = {f"sigmoid, ramp {ramp:.0%} of the run": ramp for ramp in (0.05, 0.1, 0.2, 0.5)}
LENGTHS = (201, 61)


# --- a jump -----------------------------------------------------------------------------------------------------------


def jump(random: Random, num: int, *, size: float, ramp: int) -> tuple[Series, int]:
    """A linear rise in which `size` of the range comes within `ramp` records, and the increment in their middle."""
    increments = np.diff(np.linspace(0, 1 - size, num) + _noise(random, num))
    at = int(random.integers(9, num - 10 - ramp))
    increments[at : at + ramp] += size / ramp
    return series(np.concatenate([[0.0], np.cumsum(increments)])), at + ramp // 2


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    """How often something happened in a number of simulations."""

    what: str
    num: int
    share: float
    statuses: dict[str, int]


def cells() -> list[tuple[str, int]]:
    """Every null and length that is simulated: ramps of fewer than 8 records are jumps."""
    return [(n, length) for length in LENGTHS for n in NULLS if RAMP_OF.get(n, 1) * (length - 1) >= LEAST_RAMP]


def false_alarms(name: str, length: int, *, num: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Rate:
    """Share of simulations of a null in which something is found."""
    random = np.random.default_rng((seed, list(NULLS).index(name), length))
    found = [judge(NULLS[name](random, length), num_resamples=num_resamples, seed=k).status for k in range(num)]
    return Rate(f"{name}, {length} records", num, 1 - found.count("none") / num, dict(Counter(found)))


def power(size: float, ramp: int, *, num: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Rate:
    """Share of simulations in which a jump is called abrupt and placed within its ramp and two records."""
    random = np.random.default_rng((seed, SIZES.index(size), ramp))
    right, found = 0, []
    for k in range(num):
        simulated, at = jump(random, 61, size=size, ramp=ramp)
        answer = judge(simulated, num_resamples=num_resamples, seed=k)
        near = answer.step is not None and abs(answer.step // 50 - 1 - at) <= ramp // 2 + 2
        right += answer.status == "abrupt" and near
        found.append(answer.status)
    return Rate(f"jump of {size:.0%} over {ramp} records", num, right / num, dict(Counter(found)))


def run(quick: bool = False) -> Iterator[Figure]:
    """Show both tables: a fifth of the whole simulation; `python -m tests.bench.change_point` runs all of it."""
    yield from figures(5 if quick else 200)


def figures(num: int) -> Iterator[Figure]:
    """False alarms of every null, then power for every jump."""
    for name, length in cells():
        rate = false_alarms(name, length, num=num)
        told = f"of {num}" + (f"; {_told(rate)}" if rate.share else "")
        yield Figure(f"false alarms: {rate.what}", rate.share, unit="share", goal="≤ 0.02", limit_is=told)
    for size in SIZES:
        for ramp in RAMPS:
            rate = power(size, ramp, num=num)
            goal = f"≥ {LEAST_POWER}" if ramp == 1 and size >= 0.15 else ""
            yield Figure(f"power: {rate.what}, 61 records", rate.share, unit="share", goal=goal, limit_is=f"of {num}")


def _told(rate: Rate) -> str:
    return ", ".join(f"{status} {count}" for status, count in sorted(rate.statuses.items()) if status != "none")


def main(arguments: list[str]) -> int:
    """Print the tables; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="False alarms and power of the rule for abrupt sparsification.")
    parser.add_argument("--share", type=float, default=1.0, help="share of the 1,000 simulations of each setting")
    missed = 0
    for figure in figures(max(1, round(1000 * parser.parse_args(arguments).share))):
        missed += figure.met is False
        print(figure.row(), flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
