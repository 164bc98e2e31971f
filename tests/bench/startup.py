"""How long a command takes to say what it can do: fresh processes, against a bare Python's start."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.figure import Figure
from tests.bench.measure import ROOT, seconds


def run(quick: bool = False) -> Iterator[Figure]:
    """Time --help of the command and of an app."""
    repeats = 2 if quick else 10
    nothing = _median([sys.executable, "-c", "pass"], repeats)
    limit = {"limit": nothing, "limit_is": "python -c pass"}
    yield Figure("essential-sparsity --help", _median([*command(), "--help"], repeats), goal="≤ 0.4", **limit)
    if not quick:
        yield Figure("essential-sparsity train --help", _median([*command(), "train", "--help"], 3), **limit)


def command() -> list[str]:
    """Give the installed command beside this Python, or the same by its module."""
    script = Path(sys.executable).with_name("essential-sparsity")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "essential_sparsity.apps.main"]


def _median(words: list[str], repeats: int) -> float:
    return median(
        seconds(lambda: subprocess.run(words, cwd=ROOT, capture_output=True, check=True)) for _ in range(repeats)
    )
