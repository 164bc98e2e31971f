"""Antitonic fits and crossings against slow oracles and hand-made lines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from essential_sparsity.analysis.crossing import all_crossings, antitonic, first_crossing, level_above, level_below

LEVELS = np.array([0.0, 0.2, 0.4, 0.6])

lines = st.lists(st.floats(-0.25, 0.125, width=32), min_size=1, max_size=12)


@settings(deadline=None)
@given(line=lines)
def test_the_fit_equals_scipys_falling_regression_cut_at_zero(line: list[float]) -> None:
    oracle = np.minimum(isotonic_regression(line, increasing=False).x, 0)
    np.testing.assert_allclose(antitonic(np.array([[0.0, *line]]))[0], [0.0, *oracle], atol=1e-12)


@settings(deadline=None)
@given(line=lines)
def test_the_cut_fit_is_the_best_falling_line_under_zero(line: list[float]) -> None:
    """Dense is exact: the oracle gives it so much weight that nothing moves it."""
    weights = np.array([1e12, *np.ones(len(line))])
    oracle = isotonic_regression([0.0, *line], weights=weights, increasing=False).x
    np.testing.assert_allclose(antitonic(np.array([[0.0, *line]]))[0], oracle, atol=1e-6)


def test_a_falling_line_is_its_own_fit() -> None:
    line = np.array([[0.0, -0.01, -0.02, -0.5]])
    np.testing.assert_allclose(antitonic(line), line, rtol=1e-14)


def test_many_lines_are_fitted_as_each_alone() -> None:
    many = np.random.default_rng(0).normal(scale=0.02, size=(50, 9))
    many[:, 0] = 0
    np.testing.assert_allclose(antitonic(many), np.concatenate([antitonic(line[None]) for line in many]), atol=1e-15)


@pytest.mark.parametrize(
    ("line", "crossing"),
    [
        ([0, 0, -0.02, -0.1], 0.3),
        ([0, -0.02, -0.03, -0.1], 0.1),
        ([0, 0, 0, -0.01], np.inf),  # a loss of exactly ε is within
        ([0, -0.01, -0.01, -0.02], 0.4),  # … up to the last level that has it
        ([0, 0, 0, 0], np.inf),
    ],
)
def test_the_first_crossing_of_one_point(line: list[float], crossing: float) -> None:
    assert first_crossing(LEVELS, np.array([line], float), 0.01)[0] == pytest.approx(crossing)


def test_a_loss_of_one_point_stays_within_whatever_floats_make_of_it() -> None:
    loss = 0.82 - 0.83  # -0.010000000000000009
    assert first_crossing(LEVELS, np.array([[0, loss, loss, loss]]), 0.01)[0] == np.inf


@settings(deadline=None)
@given(line=st.lists(st.floats(-0.1, 0.0), min_size=3, max_size=3))
def test_the_crossing_equals_a_walk_along_the_fitted_line(line: list[float]) -> None:
    fitted = antitonic(np.array([[0.0, *line]]))
    found = first_crossing(LEVELS, fitted, 0.01)[0]
    fine = np.linspace(0, 0.6, 60001)
    outside = np.interp(fine, LEVELS, fitted[0]) < -0.01 - 1e-9
    if outside.any() and fitted[0, -1] < -0.01 - 1e-6:
        assert found == pytest.approx(fine[outside.argmax()], abs=3e-5)


def test_all_crossings_lists_every_way_out_and_back() -> None:
    line = np.array([0, -0.02, 0.0, -0.02])
    np.testing.assert_allclose(all_crossings(LEVELS, line, 0.01), [0.1, 0.3, 0.5])
    assert all_crossings(LEVELS, np.zeros(4), 0.01) == []


def test_ends_move_outward_to_levels() -> None:
    assert (level_below(LEVELS, 0.3), level_above(LEVELS, 0.3)) == (0.2, 0.4)
    assert (level_below(LEVELS, 0.4), level_above(LEVELS, 0.4)) == (0.4, 0.4)
    assert level_above(LEVELS, np.inf) == np.inf
