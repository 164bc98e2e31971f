"""A seeded share of the coverage simulation; `python -m tests.bench.coverage` is the whole of it."""

import numpy as np
from tests.bench.coverage import SETTINGS, all_coverages


def test_the_interval_holds_the_true_essential_sparsity_in_93_of_100_simulations() -> None:
    found = list(all_coverages(share=0.05, num_resamples=200))
    assert len(found) == len(SETTINGS) == 16
    assert np.mean([each.interval for each in found]) >= 0.96
    assert all(each.interval >= 0.9 for each in found), found  # 50 simulations each: 0.93 less chance
    assert np.mean([each.free for each in found]) >= 0.95
    assert np.mean([each.costly for each in found]) >= 0.95
