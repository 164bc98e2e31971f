"""How often the interval of essential sparsity holds: a fifth of the whole simulation of coverage.py."""

from collections.abc import Iterator

from tests.bench.coverage import all_coverages
from tests.bench.figure import Figure

SHARE = 0.2
"""200 of 1,000 simulations per setting; `python -m tests.bench.coverage` runs all of them."""


def run(quick: bool = False) -> Iterator[Figure]:
    """Show each setting's share of intervals that hold the truth; 95 % is nominal."""
    for found in all_coverages(share=0.005 if quick else SHARE):
        setting, made = found.setting, found.num_simulations
        what = f"{setting.shape}, {setting.num_seeds} seeds, {setting.num_rows:,} rows: intervals that hold the truth"
        rest = f"of {made}; free is free {100 * found.free:.0f} %, costly is costly {100 * found.costly:.0f} %"
        yield Figure(what, found.interval, unit="share", goal="≥ 0.93", limit_is=rest)
