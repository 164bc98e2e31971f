"""The faults: what ends a process, or what it writes, at a moment that chance picks."""

import errno
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
"""Sent from outside after some seconds."""

KINDS = (*SIGNALS, "kill at a file", "disk full", "disk full in a file", "out of memory", "cut short")
"""All faults, as the table names them."""

NONE: dict[str, Any] = {"kind": "none"}

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate", "tempfile.mkstemp")
"""Audit events that change files, beside the opening of one to write."""


def drawn(kind: str, chance: random.Random, *, seconds: float) -> dict[str, Any]:
    """Draw one fault of a kind for a command that takes some seconds undisturbed."""
    if kind in SIGNALS:
        return {"kind": kind, "after": chance.uniform(0.05, 0.9 * seconds)}
    if kind in ("kill at a file", "disk full"):
        return {"kind": kind, "at": int(2 ** chance.uniform(0, 8))}
    if kind == "disk full in a file":
        return {"kind": kind, "bytes": int(24e3 * 20 ** chance.random())}
    if kind == "out of memory":
        return {"kind": kind, "bytes": int(2e6 * 60 ** chance.random())}
    return {"kind": kind, "share": chance.random(), "which": chance.random()}


def arm(fault: dict[str, Any], folder: Path) -> None:
    """Prepare a fault in the process that it shall hit."""
    kind = fault["kind"]
    if kind == "kill at a file":
        _at_write(fault["at"], folder, lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif kind == "disk full":
        _at_write(fault["at"], folder, _refuse)
    elif kind == "disk full in a file":
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], resource.RLIM_INFINITY))
    elif kind == "out of memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + fault["bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def _refuse() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _at_write(number: int, folder: Path, strike: Callable[[], None]) -> None:
    """Call `strike` before the number-th change of a file in the folder and, where that returns, before all later."""
    seen, inside = 0, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            changes = event in WRITES
        if not changes or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if path.startswith(inside) or not path.startswith("/"):
            seen += 1
            if seen >= number:
                strike()

    sys.addaudithook(hook)


def cut_short(fault: dict[str, Any], folder: Path) -> Path | None:
    """Truncate one file that is there, whichever chance picked, and give it; None where there is none."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _counts(path))
    if not files:
        return None
    path = files[int(fault["which"] * len(files))]
    os.truncate(path, int(fault["share"] * path.stat().st_size))
    return path


def _counts(path: Path) -> bool:
    """Say whether a file is a result or what one goes on from: no log, lock or page, no prune's mark of its folder."""
    if path.name in (".lock", "sweep.log", "README.md", ".prune.json") or path.name.endswith(".part"):
        return False
    return not {"report", "log", ".hydra"} & set(path.parts)
