"""Sparsities are exact fractions, and counts follow from them to the weight."""

from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from essential_sparsity.pruning import Global, Uniform, exact_sparsity
from essential_sparsity.pruning.allocations import num_pruned


@pytest.mark.parametrize(
    ("value", "exact"),
    [
        (0.29, Fraction(29, 100)),
        ("0.29", Fraction(29, 100)),
        (" 0.5 ", Fraction(1, 2)),
        ("1/3", Fraction(1, 3)),
        (0, Fraction(0)),
        (0.0, Fraction(0)),
        (-0.0, Fraction(0)),
        ("1e-3", Fraction(1, 1000)),
        (Fraction(2, 7), Fraction(2, 7)),
        (np.float64(0.3), Fraction(3, 10)),
        (np.float32(0.3), Fraction(3, 10)),
        (None, None),
    ],
)
def test_a_sparsity_is_the_fraction_that_was_written(value: Any, exact: Fraction | None) -> None:
    assert exact_sparsity(value) == exact


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.2, r"sparsity=1.2 lies outside \[0, 1\): did you mean 0.012 or 0.12\?"),
        ("1.2", r"sparsity=1.2 lies outside \[0, 1\): did you mean 0.012 or 0.12\?"),
        (50, r"sparsity=50 lies outside \[0, 1\): did you mean 0.5\?"),
        (9, "did you mean 0.09 or 0.9"),
        (-0.3, "did you mean 0.3"),
        (1, "1 would remove every weight"),
        (1.0, "1 would remove every weight"),
        (5000, "give a share of zeros, such as 0.5"),
        (float("nan"), "sparsity=nan is no number"),
        ("nan", "sparsity='nan' is no number"),
        (float("inf"), "sparsity=inf is no number"),
        ("half", "sparsity='half' is no number: give a share of zeros"),
        ("1/0", "is no number"),
        ("", "is no number"),
        (True, "sparsity=True is no number"),
        (False, "sparsity=False is no number"),
        ([0.5], "is no number"),
        (0.5 + 0j, "is no number"),
        ("50%", r"sparsity='50%' is a percentage: did you mean 0.5\?"),
        (Fraction(3, 2), "lies outside"),
    ],
)
def test_a_wrong_sparsity_is_refused_in_one_line_with_what_was_meant(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        exact_sparsity(value)
    assert "\n" not in str(caught.value)


def test_half_weights_round_up_where_floats_misround() -> None:
    assert num_pruned(Fraction("0.29"), 50) == 15  # 0.29 * 50 is 14.499999999999998 in floats
    assert num_pruned(Fraction("0.5"), 3) == 2
    assert num_pruned(Fraction(0), 10**12) == 0


@given(st.integers(0, 10**12), st.integers(0, 9999), st.integers(0, 9999))
def test_counts_are_exact_and_monotone(n: int, first: int, second: int) -> None:
    low, high = sorted((Fraction(first, 10000), Fraction(second, 10000)))
    assert 0 <= num_pruned(low, n) <= num_pruned(high, n) <= n
    assert num_pruned(low, n) == floor(low * n + Fraction(1, 2))


def test_global_is_one_group_and_uniform_one_per_weight() -> None:
    assert Global().groups(["a", "b"]) == [("a", "b")]
    assert Uniform().groups(["a", "b"]) == [("a",), ("b",)]
    assert Uniform().nums_pruned(Fraction(1, 2), {"a": (1, 3), "b": (2, 2)}, None) == [2, 2]
