"""Abrupt sparsification: is there a jump in a trace, and is it one of the weights or of the schedule?

Shapes: J series (thresholds, layers), T records, n = T − 1 increments.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from essential_sparsity.analysis.jumps import (
    FEWEST,
    LEAST_SHARE,
    NUM_RESAMPLES,
    WINDOW,
    Window,
    most_unusual_window,
    ramp,
    share_by_clock,
)
from essential_sparsity.analysis.metrics import Floats
from essential_sparsity.analysis.trace import RELATIVE, SparsityTrace

LEAST_RISE = 0.005
"""Share of the weights by which a trace must end higher than it began to be called rising: half a point."""


@dataclass(frozen=True)
class ChangePoint:
    """Whether and where a trace rises abruptly.

    `status`: abrupt; schedule (a learning rate that changes there, or whose pace explains it); spacing (records further
    apart explain it); shrinkage (the absolute share jumps, the relative one does not: the weights became smaller, not
    sparser); none; too_few (under 12 increments). `trend` says what the whole trace does: sparsification, shrinkage or
    none. Numbers are those of the window found, also where it is none.
    """

    status: str
    trend: str
    num_records: int
    step: int | None = None  # the record that ends the window's largest increment
    series: str | None = None
    excess: float | None = None  # share of the weights
    excess_share: float | None = None  # of the trace's range
    p: float | None = None
    ramp_records: float | None = None
    ramp_steps: float | None = None
    zero: str = "relative"
    holds_by: dict[str, bool] = field(default_factory=dict)  # clock → whether the jump is one by that clock, too
    schedule_changes: tuple[int, ...] = ()  # steps

    def sentence(self) -> str:
        """Say it in one sentence."""
        if self.status == "too_few":
            return f"{self.num_records} records are too few to call a rise abrupt: {FEWEST + 1} are needed."
        if self.status == "none":
            return f"No abrupt change in {self.num_records} records{_TRENDS[self.trend]}."
        size = (
            f"{100 * (self.excess or 0):.2f} points of the weights, {100 * (self.excess_share or 0):.0f} % of the "
            f"trace's range, over {self.ramp_records:.1f} records (p = {self.p:.3f}, {self.series})"
        )
        return f"{_WORDS[self.status]} at step {self.step:,}: {size}{_TRENDS[self.trend]}."

    def record(self) -> dict[str, Any]:
        """This change point's entry in change_points.json."""
        return {**asdict(self), "sentence": self.sentence()}


_WORDS = {
    "abrupt": "Abrupt sparsification",
    "schedule": "A jump that the schedule explains",
    "spacing": "A jump that the spacing of the records explains",
    "shrinkage": "Abrupt shrinkage, not sparsification,",
}
_TRENDS = {
    "sparsification": "; over the whole trace weights become sparser",
    "shrinkage": "; over the whole trace weights shrink, and do not become sparser",
    "none": "",
}


@dataclass(frozen=True, eq=False)
class Series:
    """What is judged: shares of near-zero weights by the relative and the absolute definition, and the clocks."""

    steps: np.ndarray  # [T]
    names: tuple[str, ...]  # [J]
    relative: Floats  # [J, T]
    absolute: Floats  # [J, T]
    lr_sum: Floats | None = None  # [T]; None where nothing is known of the schedule
    tokens: Floats | None = None  # [T]


def detect_abrupt_sparsification(
    trace: SparsityTrace,
    *,
    by: str = "total",
    multiples: Sequence[float] = (RELATIVE,),
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> ChangePoint:
    """Find the most abrupt rise of the share of near-zero weights, and say what kind it is (METHODS.md, section 7).

    Near zero is below each of `multiples` × RMS of its tensor at the same step; `by` is total, layer, kind or weight.
    Several series share one p. A claim about a setting, not a run, needs three pre-training seeds.
    """
    return judge(series_of(trace, by=by, multiples=multiples), num_resamples=num_resamples, seed=seed)


def series_of(trace: SparsityTrace, *, by: str = "total", multiples: Sequence[float] = (RELATIVE,)) -> Series:
    """Read from a trace what is judged."""
    if not multiples:
        raise ValueError("multiples=[] names no threshold: give at least one multiple of the RMS, such as 0.05")
    tables = {zero: [trace.share(zero, multiple=m, by=by) for m in multiples] for zero in ("relative", "absolute")}
    names = [
        (f"layer {name}" if by == "layer" else str(name)) + (f" below {multiple:g} RMS" if len(multiples) > 1 else "")
        for multiple, table in zip(multiples, tables["relative"], strict=True)
        for name in table.columns
    ]
    relative, absolute = (np.concatenate([t.to_numpy(float).T for t in tables[zero]]) for zero in tables)
    clocks = {name: trace.progress[name].to_numpy(float) for name in ("lr_sum", "tokens")}
    lr_sum, tokens = (clock if np.all(np.diff(clock) > 0) else None for clock in clocks.values())
    return Series(trace.steps, tuple(names), relative, absolute, lr_sum, tokens)


def judge(series: Series, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> ChangePoint:
    """Apply the rule to the relative definition, then ask schedule, clocks and the absolute one about what it finds."""
    found = ChangePoint("none", _trend(series), len(series.steps), schedule_changes=_schedule_steps(series))
    if len(series.steps) - 1 < FEWEST:
        return replace(found, status="too_few")
    increments = np.diff(series.relative, axis=1)
    window = most_unusual_window(increments, num_resamples=num_resamples, seed=seed)
    found = _described(found, series, increments, window)
    if window.is_abrupt:
        return replace(found, status=_kind(series, found, window))
    shrunk = np.diff(series.absolute, axis=1)
    other = most_unusual_window(shrunk, num_resamples=num_resamples, seed=seed)
    if other.is_abrupt:
        found = _described(replace(found, zero="absolute"), series, shrunk, other)
        kind = _kind(series, found, other)
        return replace(found, status="shrinkage" if kind == "abrupt" else kind)
    return found


def _described(found: ChangePoint, series: Series, increments: Floats, window: Window) -> ChangePoint:
    """Fill in where a window is and how large."""
    own, steps = increments[window.series], series.steps
    records = ramp(own, window.peak)
    clocks = {"steps": steps, "lr_sum": series.lr_sum, "tokens": series.tokens}
    holds = {
        name: share_by_clock(own, np.asarray(clock, float), window.start) >= LEAST_SHARE
        for name, clock in clocks.items()
        if clock is not None
    }
    return replace(
        found,
        step=int(steps[window.peak + 1]),
        series=series.names[window.series],
        excess=window.excess,
        excess_share=window.share,
        p=window.p,
        ramp_records=records,
        ramp_steps=records * float(steps[window.peak + 1] - steps[window.peak]),
        holds_by=holds,
    )


def _kind(series: Series, found: ChangePoint, window: Window) -> str:
    """Say what a jump is: abrupt, or explained by records further apart or by the learning rate."""
    if not found.holds_by["steps"]:
        return "spacing"
    near = any(abs(at - window.peak) <= WINDOW for at in schedule_changes(series))
    return "schedule" if near or not all(found.holds_by.values()) else "abrupt"


def schedule_changes(series: Series) -> list[int]:
    """Increments at which the learning rate's course bends: the end of a warm-up, a drop, the peak of one cycle.

    A bend is a second difference of the mean rate per step above 1 % of the highest rate and 8 times the usual one.
    """
    if series.lr_sum is None or len(series.steps) <= FEWEST:
        return []
    rate = np.diff(series.lr_sum) / np.diff(series.steps)
    bend = np.abs(np.diff(rate, 2))
    return (np.flatnonzero(bend > 0.01 * rate.max() + 8 * np.median(bend)) + 1).tolist()


def _schedule_steps(series: Series) -> tuple[int, ...]:
    return tuple(int(series.steps[at + 1]) for at in schedule_changes(series))


def _trend(series: Series) -> str:
    """What the first series does from its first record to its last: sparsification, shrinkage or none."""
    relative, absolute = (values[0, -1] - values[0, 0] >= LEAST_RISE for values in (series.relative, series.absolute))
    return "sparsification" if relative else "shrinkage" if absolute else "none"
