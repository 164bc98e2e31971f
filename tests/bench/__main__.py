"""Run benchmarks, print one row per figure, write outputs/bench/<name>.json, or rewrite the page from those files.

python -m tests.bench                    # all (what `make bench` runs)
python -m tests.bench pruning callback   # some
python -m tests.bench --quick            # small sizes, to see that they run; their figures mean nothing
python -m tests.bench --page             # rewrite the tables of tests/bench/README.md
"""

import argparse
import logging
import os
import sys
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from essential_sparsity import provenance
from essential_sparsity.runs import write_json
from tests.bench import (
    calibrated,
    callback,
    change_point,
    coverage_table,
    crops,
    fine_tuning,
    long_run,
    machine,
    mmlu,
    nm,
    page,
    pretraining,
    prune_large,
    pruning,
    pruning_gpu,
    recorder,
    report_site,
    self_distillation,
    startup,
    turning_point,
    two_four,
    zero_shot,
)
from tests.bench.figure import HEAD, Figure, aligned

BENCHMARKS = {
    "machine": machine.run,
    "pruning": pruning.run,
    "pruning_gpu": pruning_gpu.run,
    "nm": nm.run,
    "calibrated": calibrated.run,
    "zero_shot": zero_shot.run,
    "mmlu": mmlu.run,
    "fine_tuning": fine_tuning.run,
    "callback": callback.run,
    "recorder": recorder.run,
    "pretraining": pretraining.run,
    "crops": crops.run,
    "self_distillation": self_distillation.run,
    "startup": startup.run,
    "coverage": coverage_table.run,
    "change_point": change_point.run,
    "turning_point": turning_point.run,
    "report_site": report_site.run,
    "prune_large": prune_large.run,
    "two_four": two_four.run,
    "long_run": long_run.run,
}

PAGES = (*BENCHMARKS, "soak")
"""What the page shows; the soak is no benchmark of speed, and has a command of its own (make soak)."""


def measure(name: str, folder: Path, *, quick: bool) -> list[Figure]:
    """Run one benchmark: print its rows as they come, then write its file, quick figures apart from real ones."""
    started, load, figures = time.monotonic(), os.getloadavg()[0], []
    for figure in BENCHMARKS[name](quick):
        if quick and not figure.check:
            figure = replace(figure, goal="")  # goals are about the real sizes
        figures.append(figure)
        print(figure.row(), flush=True)
    content = {
        "name": name,
        "command": f"python -m tests.bench {name}{' --quick' if quick else ''}",
        "quick": quick,
        "created": provenance.now(),
        "git": provenance.git_revision(),
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - started, 1),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "figures": [figure.as_dict() for figure in figures],
    }
    write_json((folder / "quick" if quick else folder) / f"{name}.json", content)
    return figures


def main(arguments: list[str]) -> int:
    """Run what was asked for; exit code 1 when a benchmark broke or a check (not a speed) failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Peers and ours side by side.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that they run")
    parser.add_argument("--page", action="store_true", help="rewrite the page's tables from the files, measure nothing")
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench"), help="where the files go")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in BENCHMARKS]:
        parser.error(f"{unknown[0]} is no benchmark: choose among {', '.join(BENCHMARKS)}")
    if asked.page:
        return page.rewrite(asked.folder, list(PAGES))
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")
    print(aligned(HEAD))
    failed = False
    for name in asked.names or BENCHMARKS:
        print(f"\n{name}", flush=True)
        try:
            figures = measure(name, asked.folder, quick=asked.quick)
        except Exception:  # the others still run; the exit code tells
            traceback.print_exc()
            failed = True
        else:
            failed |= any(figure.check and figure.met is False for figure in figures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
