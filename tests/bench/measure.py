"""How things are measured: in turn, in a fresh process, and at the peak of memory."""

import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
Result = TypeVar("Result")


def seconds(work: Callable[[], object]) -> float:
    """Give the wall time of one call; what it returned is freed outside the time."""
    started = time.perf_counter()
    result = work()
    taken = time.perf_counter() - started
    del result
    return taken


def in_turn(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Call both, which give their own seconds, alternating who goes first: (median, median, median of ours / peer)."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            theirs = peer()
            pairs.append((ours(), theirs))
        else:
            mine = ours()
            pairs.append((mine, peer()))
    return median(o for o, _ in pairs), median(p for _, p in pairs), median(o / p for o, p in pairs)


# --- a fresh process --------------------------------------------------------------------------------------------------


def fresh(function: Callable[..., Any], /, environment: dict[str, str] | None = None, **arguments: Any) -> Any:
    """Call a function of a benchmark module in a fresh process: (what it gave, through JSON; wall seconds in all)."""
    command = [sys.executable, "-m", "tests.bench.measure", function.__module__, function.__name__]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        started = time.perf_counter()
        done = subprocess.run(
            [*command, json.dumps(arguments), str(answer)],
            cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        taken = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"{function.__name__} failed in a fresh process:\n{done.stderr[-3000:]}")
        return json.loads(answer.read_text()), taken


def _answer(module: str, function: str, arguments: str, answer: str) -> None:
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    Path(answer).write_text(json.dumps(result))


# --- memory -----------------------------------------------------------------------------------------------------------


def peak_memory(work: Callable[[], Result]) -> tuple[Result, int]:
    """Call `work` and give its result and the bytes by which the process's resident memory peaked above its start.

    Linux only: the kernel's high-water mark is reset through /proc/self/clear_refs. Call it in a fresh process, warmed
    up: memory that earlier work freed but the allocator kept would hide a peak.
    """
    gc.collect()
    CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = work()
    return result, _status("VmHWM") - before


def _status(key: str) -> int:
    """Read one line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
