"""A process that has imported everything and forks a child per start of a command: real kills, no import cost.

It reads one JSON line per start from stdin (`words`, `folder`, `fault`, `limit`) and answers one on stdout.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from tests.soak import faults

MODULES = (
    *("torch", "pytorch_lightning", "timm", "sklearn.datasets", "pandas", "pyarrow.parquet", "pyarrow.csv"),
    *("matplotlib.pyplot", "scipy.stats", "hydra.main", "hydra.core.plugins"),
    *(f"essential_sparsity.{name}" for name in ("training", "evaluation", "streaming", "report", "similarity")),
    *(f"essential_sparsity.apps.{name}" for name in ("main", "train", "evaluate", "lottery", "prune", "trace")),
    *(f"essential_sparsity.apps.{name}" for name in ("report", "similarities", "distributions", "rounds", "recipes")),
    *("essential_sparsity.data.digits", "essential_sparsity.backbones.vision"),
    "essential_sparsity.tasks.image_classification",
)


def serve() -> None:
    """Import, then start what is asked for, one at a time, until stdin ends."""
    for name in MODULES:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    importlib.import_module("hydra.core.plugins").Plugins.instance()
    if "--without-pages" in sys.argv:  # they take longer than the small sweep of the tests of every day
        vars(importlib.import_module("essential_sparsity.apps.report"))["report_folder"] = lambda folder: []
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(start(**json.loads(line))), flush=True)


def start(words: list[str], folder: str, fault: dict[str, Any], limit: float) -> dict[str, Any]:
    """Fork, run one command under a fault, wait; exit code as a shell has it negative for a signal, None: it hung."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _run(words, folder, fault, output.fileno())
        code = _wait(child, fault, began, limit)
        output.seek(0)
        return {"code": code, "seconds": time.monotonic() - began, "output": output.read().decode(errors="replace")}


def _wait(child: int, fault: dict[str, Any], began: float, limit: float) -> int | None:
    """Wait for a child, sending the fault's signal when its time comes; end the whole group where it hangs."""
    todo = faults.SIGNALS.get(fault["kind"])
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - began
        if ended or passed > limit:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it started ends with it
            if not ended:
                os.waitpid(child, 0)
                return None
            return os.waitstatus_to_exitcode(status)
        if todo is not None and passed >= fault["after"]:
            os.kill(child, todo)
            todo = None
        time.sleep(0.005)


def _run(words: list[str], folder: str, fault: dict[str, Any], output: int) -> NoReturn:
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        importlib.import_module("torch").set_num_threads(1)  # a fork's first two threads race for torch's pool else
        from essential_sparsity.apps.main import main

        sys.argv = ["essential-sparsity", *words]
        faults.arm(fault, Path(folder))
        code = main(list(words))
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
