"""The rule for abrupt sparsification finds planted jumps, and nothing where nothing happens."""

import numpy as np
import pytest
import torch
from tests.bench import change_point as bench

from essential_sparsity.analysis import SparsityTrace, detect_abrupt_sparsification
from essential_sparsity.analysis.change_point import judge
from essential_sparsity.analysis.jumps import excesses, most_unusual_window, ramp, running_median
from essential_sparsity.pruning import MagnitudeHistogram

RECORDS = 41


def trace_of(change, num_records: int = RECORDS) -> SparsityTrace:
    """Record two weights that drift a little; `change(weights, record)` may do something to them."""
    generator = torch.Generator().manual_seed(0)
    start = {name: 0.02 * torch.randn(20_000, generator=generator) for name in ("a.0.w", "a.1.w")}
    drift = {name: 0.0002 * torch.randn(20_000, generator=generator) for name in start}
    histograms = {}
    for record in range(num_records):
        weights = change({name: start[name] + record * drift[name] for name in start}, record)
        histograms[100 * record] = {name: MagnitudeHistogram.count(weight) for name, weight in weights.items()}
    lr_sum = {step: 1e-4 * step for step in histograms}
    return SparsityTrace.from_histograms(histograms, lr_sum=lr_sum, tokens={step: 64 * step for step in histograms})


def still(weights, record):
    return weights


def sparser(weights, record):
    """From record 25 on a tenth of the weights is a hundredth of what it was."""
    return {name: torch.cat([w[:2000] * (0.01 if record >= 25 else 1), w[2000:]]) for name, w in weights.items()}


def smaller(weights, record):
    """From record 25 on all weights are half of what they were."""
    return {name: w * (0.5 if record >= 25 else 1) for name, w in weights.items()}


def test_a_planted_jump_is_found_at_its_step() -> None:
    trace = trace_of(sparser)
    found = detect_abrupt_sparsification(trace)
    assert (found.status, found.step, found.series, found.trend) == ("abrupt", 2500, "total", "sparsification")
    assert found.excess == pytest.approx(0.096, abs=0.005) and found.p is not None and found.p <= 0.002
    assert found.ramp_records == pytest.approx(0.8, abs=0.05) and found.ramp_steps == pytest.approx(80, abs=5)
    assert all(found.holds_by.values()) and found.holds_by.keys() == {"steps", "lr_sum", "tokens"}
    assert "Abrupt sparsification at step 2,500: 9." in found.sentence()


def test_several_thresholds_or_weights_share_one_p_and_name_where() -> None:
    def one(weights, record):
        return {**weights, "a.1.w": sparser(weights, record)["a.1.w"]}

    trace = trace_of(one)
    found = detect_abrupt_sparsification(trace, by="weight")
    assert (found.status, found.step, found.series) == ("abrupt", 2500, "a.1.w")
    found = detect_abrupt_sparsification(trace, multiples=(0.02, 0.05, 0.2))
    assert found.status == "abrupt" and found.step == 2500 and found.series is not None and "RMS" in found.series
    with pytest.raises(ValueError, match=r"multiples=\[\] names no threshold"):
        detect_abrupt_sparsification(trace, multiples=())


def test_weights_that_only_become_smaller_are_no_sparsification() -> None:
    found = detect_abrupt_sparsification(trace_of(smaller))
    assert (found.status, found.step, found.trend, found.zero) == ("shrinkage", 2500, "shrinkage", "absolute")
    assert "shrinkage, not sparsification, at step 2,500" in found.sentence()


def test_a_trace_that_drifts_has_none() -> None:
    found = detect_abrupt_sparsification(trace_of(still))
    assert found.status == "none" and found.sentence().startswith("No abrupt change in 41 records")
    assert found.record()["status"] == "none"


def test_twelve_increments_are_the_least() -> None:
    assert detect_abrupt_sparsification(trace_of(still, 12)).status == "too_few"
    assert detect_abrupt_sparsification(trace_of(still, 13)).status == "none"
    assert "13 are needed" in detect_abrupt_sparsification(trace_of(still, 12)).sentence()


def jump_at(record: int, num: int = 61) -> np.ndarray:
    random = np.random.default_rng(0)
    increments = np.diff(np.linspace(0, 0.8, num) + 0.002 * random.normal(size=num))
    increments[record - 1] += 0.2
    return np.concatenate([[0.0], np.cumsum(increments)])


def test_a_jump_at_the_end_of_the_warm_up_is_the_schedule_s() -> None:
    rate = np.where(np.arange(60) < 30, np.arange(1, 61) / 30, (60 - np.arange(60)) / 30)
    found = judge(bench.series(jump_at(31), rate=rate))
    assert found.status == "schedule" and found.step == 31 * 50
    assert any(abs(step - 30 * 50) <= 100 for step in found.schedule_changes)
    assert judge(bench.series(jump_at(45), rate=rate)).status == "abrupt"
    assert "the schedule explains" in found.sentence()


def test_a_jump_that_the_learning_rate_s_pace_explains_is_the_schedule_s() -> None:
    """Three steps at thirty times the rate: the share follows Σ lr."""
    rate = np.ones(60)
    rate[30:33] = 30
    shares = np.concatenate([[0.0], np.cumsum(rate)])
    found = judge(bench.series(shares / shares[-1], rate=rate))
    assert found.status == "schedule" and not found.holds_by["lr_sum"]


def test_records_further_apart_are_no_jump() -> None:
    steps = np.concatenate([50 * np.arange(30), 50 * 29 + 1000 * np.arange(1, 4), 4450 + 50 * np.arange(1, 31)])
    random = np.random.default_rng(0)
    shares = steps / steps[-1] + 1e-4 * random.normal(size=len(steps))
    from essential_sparsity.analysis.change_point import Series

    found = judge(Series(steps, ("total",), shares[None], shares[None]))
    assert found.status == "spacing" and "spacing of the records" in found.sentence()


# --- the rule against a loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [12, 13, 20, 59])
def test_excess_is_what_a_loop_gives(num: int) -> None:
    y = np.random.default_rng(num).normal(size=(2, num))
    for series in range(2):
        for start in range(num - 2):
            before, after = y[series, max(0, start - 9) : start], y[series, start + 3 : start + 12]
            medians = [np.median(side) for side in (before, after) if len(side) >= 3]
            expected = y[series, start : start + 3].sum() - 3 * max(medians)
            assert excesses(y)[series, start] == pytest.approx(expected)


def test_the_running_median_is_what_a_loop_gives() -> None:
    y = np.random.default_rng(0).normal(size=30)
    expected = [np.median(y[max(0, i - 4) : i + 5]) for i in range(30)]
    assert running_median(y).tolist() == pytest.approx(expected)


def test_a_ramp_s_length_is_from_10_to_90_percent() -> None:
    y = np.full(40, 0.001)
    y[20:26] += 0.05
    assert ramp(y, 22) == pytest.approx(0.8 * 6, abs=0.01)
    y = np.zeros(40)
    y[5] = 1
    assert ramp(y, 5) == pytest.approx(0.8)


def test_a_constant_trace_has_no_window() -> None:
    window = most_unusual_window(np.zeros((1, 30)))
    assert not window.is_abrupt and window.share == 0


def test_the_same_seed_gives_the_same_p() -> None:
    y = np.random.default_rng(3).normal(size=(2, 40))
    assert most_unusual_window(y, seed=4) == most_unusual_window(y, seed=4)


# --- a seeded share of the simulation ---------------------------------------------------------------------------------


def test_false_alarms_are_few() -> None:
    """5 % of the simulation: 50 of each null; at 2 % each, more than 4 in one happens once in 300."""
    found = [bench.false_alarms(name, length, num=50, num_resamples=199) for name, length in bench.cells()[:11]]
    assert len(found) == 11
    assert all(rate.share <= 0.08 for rate in found), found
    assert np.mean([rate.share for rate in found]) <= 0.02, found


def test_jumps_of_a_record_are_found() -> None:
    for size in (0.15, 0.2, 0.4):
        assert bench.power(size, 1, num=20, num_resamples=199).share >= 0.85
    assert bench.power(0.05, 1, num=20, num_resamples=199).share == 0
