"""Run the soak: python -m tests.soak [--faults 200] [--seed 0] → outputs/bench/soak.json (what `make soak` runs)."""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from essential_sparsity import provenance
from essential_sparsity.runs import write_json
from tests.bench import machine
from tests.bench.figure import Figure
from tests.soak import faults, sweep
from tests.soak.harness import Account, Soak, prepare, starter


def main(arguments: Sequence[str]) -> int:
    """Go round after round until so many faults have hit; exit code 1 where anything was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=200, help="how many must hit")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds")
    parser.add_argument("--kinds", default=",".join(faults.KINDS), help="which faults, by comma")
    parser.add_argument("--file", type=Path, default=Path("outputs/bench/soak.json"))
    asked = parser.parse_args(arguments)
    account, chance = Account(), random.Random(asked.seed)
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, starter() as start:
        number = 0
        while account.num_faults < asked.faults:
            place = Path(folder, str(number))
            prepare(start, place)
            Soak(start, place, chance, account).round(sweep.commands(number), sweep.NUM_FAULTS, asked.kinds.split(","))
            number += 1
            print(f"{account.num_faults} faults, {account.num_points} points, {time.monotonic() - began:.0f} s: "
                  f"{len(account.wrong)} wrong", *account.wrong, sep="\n  ", flush=True)  # fmt: skip
    write(account, asked.file, seconds=time.monotonic() - began, seed=asked.seed, load=load)
    return int(bool(account.wrong))


def write(account: Account, file: Path, *, seconds: float, seed: int, load: float) -> None:
    """Write the table of faults × outcomes as figures of a benchmark."""
    figures = [
        Figure(f"{kind}: {how}", ours=number, unit="faults") for (kind, how), number in sorted(account.hits.items())
    ]
    figures += [Figure(f"faults on {name}", ours=count, unit="faults") for name, count in account.faults_of.items()]
    figures += [
        Figure("faults in all", ours=account.num_faults, unit="faults", goal="≥ 200"),
        Figure("runs that they hit", ours=account.num_points, unit="runs", goal="≥ 50"),
        Figure("starts that were needed beside the one after the last fault", ours=account.again, unit="starts"),
        Figure("lost, doubled, different, hung, traceback", ours=len(account.wrong), unit="", goal="= 0", check=True),
    ]
    for figure in figures:
        print(figure.row())
    content = {
        "name": "soak",
        "command": f"python -m tests.soak --seed {seed}",
        "quick": False,
        "created": provenance.now(),
        "git": provenance.git_revision(),
        "load_before": round(load, 2),
        "seconds": round(seconds, 1),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "figures": [figure.as_dict() for figure in figures],
        "wrong": account.wrong,
    }
    write_json(file, content)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
