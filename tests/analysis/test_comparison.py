"""Two curves side by side: excess over a control, equality by two one-sided tests."""

from dataclasses import replace

import numpy as np
import pytest

from essential_sparsity.analysis import SparsityCurve, equivalence, essential_sparsity_excess

LEVELS = [0.0, 0.2, 0.4, 0.6, 0.8]


def curve_of(accuracies: list[float], *, levels: list[float] = LEVELS, num_rows: int = 4000) -> SparsityCurve:
    """Three seeds on the same rows: row difficulty is shared by everything drawn here."""
    difficulty = np.random.default_rng(0).random((1, 1, num_rows))
    noise = 0.01 * np.random.default_rng(1).normal(size=(len(levels), 3, num_rows))
    return SparsityCurve.from_scores(levels, difficulty + noise < np.array(accuracies)[:, None, None])


OMP = curve_of([0.9, 0.9, 0.9, 0.9, 0.5])
RANDOM = curve_of([0.9, 0.8, 0.6], levels=[0.0, 0.4, 0.8])


def test_excess_is_the_difference_of_both_crossings_with_an_interval_around_it() -> None:
    excess = essential_sparsity_excess(OMP, RANDOM)
    assert excess.essential_sparsity_excess == pytest.approx((0.6 + 0.2 * 0.01 / 0.4) - 0.04, abs=0.01)
    assert (excess.ci_low, excess.ci_high) == (pytest.approx(0.2), pytest.approx(0.8))


def test_a_curve_has_no_excess_over_itself() -> None:
    excess = essential_sparsity_excess(OMP, OMP)
    assert excess.essential_sparsity_excess == 0.0
    assert excess.ci_low is not None and excess.ci_high is not None
    assert excess.ci_low <= 0 <= excess.ci_high


def test_a_curve_that_never_turns_leaves_the_excess_open_above() -> None:
    flat = curve_of([0.9] * 5)
    excess = essential_sparsity_excess(flat, RANDOM)
    assert (excess.essential_sparsity_excess, excess.ci_high) == (None, None)
    assert excess.ci_low == pytest.approx(0.4)


def test_a_control_that_never_turns_leaves_the_excess_open_below() -> None:
    assert essential_sparsity_excess(OMP, curve_of([0.9] * 5)).ci_low is None


def test_equal_curves_are_equivalent_and_distant_ones_are_not() -> None:
    assert all(line["equivalent"] for line in equivalence(OMP, curve_of([0.9, 0.9, 0.9, 0.9, 0.5])))
    apart = {line["sparsity"]: line["equivalent"] for line in equivalence(OMP, RANDOM)}
    assert apart == {0.0: True, 0.4: False, 0.8: False}


def test_a_verdict_is_equal_different_or_not_shown() -> None:
    """Bounds within ±ε, a two-sided interval without 0, or neither."""
    near = curve_of([0.9, 0.9, 0.892, 0.9, 0.5], num_rows=400)
    lines = {line["sparsity"]: line for line in equivalence(curve_of([0.9, 0.9, 0.9, 0.6, 0.5], num_rows=400), near)}
    assert {level: line["verdict"] for level, line in lines.items()} == {
        0.0: "equal", 0.2: "equal", 0.4: "not shown", 0.6: "different", 0.8: "equal",
    }  # fmt: skip
    assert {line["num_seeds"] for line in lines.values()} == {3}
    assert lines[0.6]["high"] < 0 < lines[0.4]["high"]


def test_one_seed_shows_nothing_of_two_pruners() -> None:
    alone = {cell: rows for cell, rows in OMP.statistics.items() if cell[1] == 0}
    for other in (OMP, RANDOM):
        lines = equivalence(replace(OMP, statistics=alone), other)
        assert {(line["num_seeds"], line["verdict"], line["equivalent"]) for line in lines} == {(1, "not shown", False)}


@pytest.mark.parametrize(("num_rows", "verdict"), [(298, "not shown"), (299, "equal")])
def test_rows_that_all_agree_leave_open_what_the_rule_of_three_says(num_rows: int, verdict: str) -> None:
    curve = curve_of([0.9] * 5, num_rows=num_rows)
    lines = equivalence(curve, curve)
    assert {line["verdict"] for line in lines} == {verdict}
    assert {line["high"] for line in lines} == {-line["low"] for line in lines} == {1 - 0.05 ** (1 / num_rows)}


def test_the_rule_of_three_is_for_means_over_rows() -> None:
    rows = {cell: np.tile([[-2.0, 1.0]], (50, 1)) for cell in OMP.statistics}
    curve = replace(OMP, metric="perplexity", num_rows=50, statistics=rows)
    assert {(line["low"], line["high"]) for line in equivalence(curve, curve)} == {(0.0, 0.0)}


def test_equality_asks_for_no_dense_run_and_takes_the_seeds_that_both_have() -> None:
    cells = {(level, seed + 1): rows for (level, seed), rows in OMP.statistics.items() if level and seed < 2}
    lines = equivalence(OMP, replace(OMP, statistics={**cells, (0.8, 9): cells[0.8, 1]}))
    assert [line["sparsity"] for line in lines] == [0.2, 0.4, 0.6, 0.8]
    assert {line["num_seeds"] for line in lines} == {2}
    with pytest.raises(ValueError, match="share no run's level and seed: run both with the same seeds"):
        equivalence(OMP, replace(OMP, statistics={(0.3, 0): OMP.statistics[0.2, 0]}))


def test_a_difference_that_cannot_be_told_from_epsilon_is_not_equivalence() -> None:
    near = curve_of([0.9, 0.891, 0.9, 0.9, 0.5], num_rows=200)
    assert not equivalence(curve_of([0.9, 0.9, 0.9, 0.9, 0.5], num_rows=200), near)[1]["equivalent"]


def test_curves_on_other_rows_are_refused() -> None:
    other = replace(RANDOM, row_ids=np.arange(3))
    with pytest.raises(ValueError, match="omp and omp differ in metric or evaluation rows"):
        essential_sparsity_excess(OMP, other)


def test_curves_without_a_common_seed_are_refused() -> None:
    moved = {(level, seed + 10): rows for (level, seed), rows in RANDOM.statistics.items()}
    with pytest.raises(ValueError, match="share no complete seed: run both with the same seeds"):
        essential_sparsity_excess(OMP, replace(RANDOM, statistics=moved))
