"""Sparsities: exact fractions as they were written, and the counts that follow from them."""

import math
from fractions import Fraction
from numbers import Real


def exact_sparsity(value: object) -> Fraction | None:
    """Read a sparsity as the exact fraction that was written: 0.29 is 29/100. None, what the pattern implies, stays.

    Raises ValueError for anything outside [0, 1), with the value that was probably meant.
    """
    if value is None or (isinstance(value, Fraction) and 0 <= value < 1):
        return value
    number = _fraction(value)
    if number is None:
        raise ValueError(f"sparsity={value!r} is no number: give a share of zeros in [0, 1), such as 0.5")
    if not 0 <= number < 1:
        raise ValueError(f"sparsity={value} lies outside [0, 1): {_remedy(number)}")
    return number


def _fraction(value: object) -> Fraction | None:
    """Read a number as it is written in decimals; None for anything else, booleans and NaN included."""
    if isinstance(value, bool) or not isinstance(value, (str, Real)):
        return None
    text = str(value).strip()
    percent = text.endswith("%")
    try:
        number = Fraction(text.removesuffix("%"))
    except (ValueError, ZeroDivisionError):
        return None
    if percent:
        raise ValueError(f"sparsity={value!r} is a percentage: did you mean {float(number / 100):g}?")
    return number


def _remedy(number: Fraction) -> str:
    """Guess what was meant by a sparsity outside [0, 1)."""
    if number == 1:
        return "1 would remove every weight; 0.99 keeps one in a hundred"
    candidates = [-number] if number < 0 else [number / 100, number / 10]
    guesses = [f"{float(guess):g}" for guess in candidates if 0 < guess < 1]
    return f"did you mean {' or '.join(guesses)}?" if guesses else "give a share of zeros, such as 0.5"


def num_pruned(sparsity: Fraction, n: int) -> int:
    """Give how many of n weights a sparsity prunes: floor(s n + 1/2), exact and monotone in s."""
    return math.floor(sparsity * n + Fraction(1, 2))
