"""The rule for a jump: does a trace rise faster in one short window than everywhere around it?

Shapes: J series (thresholds, layers), T records, n = T − 1 increments, B resamples. A window is WINDOW increments; its
excess is their sum less what the faster of its two neighbourhoods would have given. The null hypothesis is the running
median of the increments plus noise in blocks. A running median of 9 keeps whatever lasts five records or more, so its
own excess is no jump: it is taken off before size and p are judged.
"""

from dataclasses import dataclass

import numpy as np

from essential_sparsity.analysis.metrics import Floats

WINDOW, NEIGHBOURS, FEWEST_NEIGHBOURS = 3, 9, 3
BLOCK, MEDIAN_OF = 6, 9
FEWEST = 12
"""Increments under which nothing is said."""

LEAST_SHARE, LEVEL = 0.10, 0.01
NUM_RESAMPLES = 999

SLOWEST = 0.05
"""Least pace of a clock, as a share of the usual one: where it stands still nothing is divided by 0."""

WIDENED = 1.3
"""Residuals are widened by this: the largest ones are left out of them, and the running median takes some (sim)."""


def excesses(increments: Floats) -> Floats:
    """Excess of every window, [..., n − 2], of increments [..., n]: Σ − 3 · max(median before, median after).

    Neighbourhoods are the 9 increments on a side; at the ends those that exist, at least 3.
    """
    sums = np.lib.stride_tricks.sliding_window_view(increments, WINDOW, axis=-1).sum(-1)
    before = _medians_before(increments)
    after = _medians_before(increments[..., ::-1])[..., ::-1]
    return sums - WINDOW * np.maximum(before, after)


def _medians_before(increments: Floats) -> Floats:
    """Median of the increments before each window, [..., n − 2]; −∞ where fewer than 3 exist."""
    num = increments.shape[-1] - WINDOW + 1
    found = np.full((*increments.shape[:-1], num), -np.inf)
    for start in range(FEWEST_NEIGHBOURS, min(NEIGHBOURS, num)):
        found[..., start] = np.median(increments[..., :start], axis=-1)
    if num > NEIGHBOURS:
        near = np.lib.stride_tricks.sliding_window_view(increments[..., : num - 1], NEIGHBOURS, axis=-1)
        found[..., NEIGHBOURS:] = np.sort(near, axis=-1)[..., NEIGHBOURS // 2]
    return found


def running_median(increments: Floats) -> Floats:
    """Running median of 9 increments, fewer at the ends: [..., n]."""
    reach, num = MEDIAN_OF // 2, increments.shape[-1]
    parts = [np.median(increments[..., max(0, i - reach) : i + reach + 1], axis=-1) for i in range(num)]
    return np.stack(parts, axis=-1)


def resampled(rest: Floats, length: int, *, num_resamples: int, seed: int) -> Floats:
    """Series of blocks of 6 residuals, one draw of blocks for all series: [B, J, n] from [J, n − 3]."""
    random = np.random.default_rng(seed)
    block = min(BLOCK, rest.shape[-1])
    starts = random.integers(0, rest.shape[-1] - block + 1, (num_resamples, -(-length // block)))
    index = (starts[:, :, None] + np.arange(block)).reshape(num_resamples, -1)[:, :length]
    return np.moveaxis(rest[:, index], 0, 1)


@dataclass(frozen=True)
class Window:
    """The most unusual window of several series: where it is, how large, how likely without a change."""

    series: int
    start: int  # its first increment
    peak: int  # its largest increment; the record that ends it is peak + 1
    excess: float
    share: float  # of its series' range: its excess, or that less the trend's own where that is smaller
    p: float

    @property
    def is_abrupt(self) -> bool:
        """Whether it is large and unlikely."""
        return self.share >= LEAST_SHARE and self.p <= LEVEL


def most_unusual_window(increments: Floats, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Window:
    """Find the window of the largest excess among several series, [J, n], with one p for all by the maximum statistic.

    Among windows of at least 10 % of their series' range the largest in units of its series' residuals counts; where
    there is none, the largest share, and p is 1.
    """
    smooth = running_median(increments)
    own = excesses(smooth)
    found = excesses(increments)
    share = np.minimum(found, found - own) / _range(increments)[:, None]
    series, start = (int(i) for i in np.unravel_index(np.argmax(share), share.shape))
    p = 1.0
    if share[series, start] >= LEAST_SHARE:
        beyond = np.where(share >= LEAST_SHARE, found - own, -np.inf)
        series, start, p = _most_significant(increments, beyond, own, num_resamples=num_resamples, seed=seed)
    peak = start + int(np.argmax(increments[series, start : start + WINDOW]))
    return Window(series, start, peak, float(found[series, start]), float(share[series, start]), p)


def _range(increments: Floats) -> Floats:
    """Range of each series' levels, [J]; 1 where nothing ever changes."""
    levels = np.cumsum(np.concatenate([np.zeros((len(increments), 1)), increments], axis=1), axis=1)
    extent = np.ptp(levels, axis=1)
    return np.where(extent > 0, extent, 1.0)


def _most_significant(
    increments: Floats, beyond: Floats, own: Floats, *, num_resamples: int, seed: int
) -> tuple[int, int, float]:
    """Series, window and p of the largest excess beyond the trend's own, in units of its series' residuals."""
    smooth = running_median(increments)
    windows = np.argmax(excesses(increments) - own, axis=1)
    left = [np.delete(y - m, slice(at, at + WINDOW)) for y, m, at in zip(increments, smooth, windows, strict=True)]
    rest = WIDENED * np.stack(left)
    scale = np.sqrt(np.mean(rest**2, axis=1)) + 1e-9 * _range(increments)
    units = beyond / scale[:, None]
    series, start = (int(i) for i in np.unravel_index(np.argmax(units), units.shape))
    drawn = smooth + resampled(rest, increments.shape[1], num_resamples=num_resamples, seed=seed)
    null = ((excesses(drawn) - own).max(axis=2) / scale).max(axis=1)
    p = (1 + int((null >= units[series, start]).sum())) / (num_resamples + 1)
    return series, start, p


def share_by_clock(increments: Floats, clock: Floats, start: int) -> float:
    """Share of a window by another clock [T] than the number of the record: is it a jump by that clock, too?

    Increments [n] are those per usual time between two records of the neighbourhood; the range stays as it is.
    """
    passed = np.diff(clock)
    usual = np.median(passed[max(0, start - NEIGHBOURS) : start + WINDOW + NEIGHBOURS])
    paced = increments / np.maximum(passed / usual, SLOWEST)
    found = excesses(paced)[start]
    beyond = found - excesses(running_median(paced))[start]
    return float(min(found, beyond) / _range(increments[None])[0])


def ramp(increments: Floats, peak: int) -> float:
    """Records over which a jump goes from 10 % to 90 %, interpolated; its increments are those around `peak` [n].

    They are next to each other and exceed the median of the neighbourhood by a tenth of the peak's excess.
    """
    near = increments[max(0, peak - NEIGHBOURS) : peak + NEIGHBOURS + 1]
    above = increments - np.median(near)
    first = last = peak
    least = 0.1 * above[peak]
    while first > 0 and above[first - 1] > least:
        first -= 1
    while last + 1 < len(above) and above[last + 1] > least:
        last += 1
    done = np.concatenate([[0.0], np.cumsum(above[first : last + 1])]) / above[first : last + 1].sum()
    low, high = np.interp([0.1, 0.9], done, np.arange(len(done)))
    return float(high - low)
