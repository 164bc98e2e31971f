"""Ten faults on a small sweep: the same commands again leave what the undisturbed ones leave, to the bit."""

import random

from tests.soak import faults, sweep
from tests.soak.harness import Account, Soak, prepare, starter


def test_ten_faults_lose_nothing_and_double_nothing(tmp_path):
    account = Account()
    with starter(pages=False) as start:
        prepare(start, tmp_path)
        Soak(start, tmp_path, random.Random(3), account).round(sweep.few(), {"train": 8, "prune": 2}, faults.KINDS)
    assert account.wrong == []
    assert account.num_faults == 10 and account.num_points == 3
