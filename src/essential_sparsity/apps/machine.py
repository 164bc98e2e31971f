"""The doctor's checks of the machine: threads, memory, devices, folders, caches, the hub."""

import fcntl
import functools
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from essential_sparsity.apps.doctor import Finding

GIB = 1 << 30
LITTLE_DISK, NO_DISK = 5 * GIB, GIB // 5
"""Free bytes below which a sweep with saved models fills a disk, and below which nothing can be written."""

SECONDS_PER_CACHE = 0.3
"""How long the files of one cache are counted; a larger one is given as a lower bound."""


# --- machine ----------------------------------------------------------------------------------------------------------


def granted_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Give the cores that this process may use: its affinity, or the container's quota where that is less."""
    cores = float(len(os.sched_getaffinity(0)))
    if limit.is_file():
        quota, period = limit.read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def threads() -> Iterator[Finding]:
    """Look at what makes every step slow without an error: too many threads, spinning ones, a busy machine."""
    cores, load = granted_cores(), os.getloadavg()[0]
    asked = os.environ.get("OMP_NUM_THREADS", "")
    number = int(asked) if asked.isdigit() else len(os.sched_getaffinity(0))
    text = f"{cores:g} cores, {number} threads of OpenMP{'' if asked else ' (OMP_NUM_THREADS is not set)'}"
    if number > cores + 0.99:
        fewer = max(1, int(cores))
        yield Finding("threads", "warning", f"{text}: they wait for each other", f"export OMP_NUM_THREADS={fewer}")
    else:
        yield Finding("threads", "ok", f"{text}, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        text = "OMP_WAIT_POLICY=ACTIVE: spinning threads slow a shared machine tenfold"
        yield Finding("threads", "warning", text, "export OMP_WAIT_POLICY=PASSIVE")
    if load > cores + 0.5:
        remedy = "wait, or do not take times"
        yield Finding("threads", "warning", f"load {load:.1f} on {cores:g} cores: others compute here", remedy)


def memory(table: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup/memory.max")) -> Iterator[Finding]:
    """Say how much memory there is, and how much of it is left."""
    if not table.is_file():
        yield Finding("memory", "ok", "not told by this system")
        return
    rows = dict(re.findall(r"^(\w+):\s+(\d+) kB", table.read_text(), flags=re.M))
    total, left = int(rows["MemTotal"]) * 1024, int(rows["MemAvailable"]) * 1024
    bound = limit.read_text().strip() if limit.is_file() else "max"
    if bound != "max" and int(bound) < total:
        total, left = int(bound), min(left, int(bound))
    text = f"{left / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if left < 2 * GIB:
        yield Finding("memory", "warning", text, "BERT-base trains in 3 GiB: end other programs, or use a small model")
    else:
        yield Finding("memory", "ok", text)


def devices() -> Iterator[Finding]:
    """Say what would be computed on: CUDA devices, or the CPU; a build that does not fit the card is an error."""
    import torch

    driver = Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _card(torch, index)
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple GPU (MPS); masks and histograms are computed on the CPU")
    elif driver and torch.version.cuda is None:
        remedy = "install torch's CUDA build (pytorch.org, Get started)"
        yield Finding("device", "warning", f"an NVIDIA card, but torch {torch.__version__} is a CPU build", remedy)
    elif driver and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        remedy = "compare nvidia-smi's CUDA version with torch.version.cuda"
        yield Finding("device", "warning", f"an NVIDIA driver, but torch {torch.__version__} finds no card", remedy)
    else:
        yield Finding("device", "ok", f"CPU, torch {torch.__version__}: demo and tiny scales take minutes")


def _card(torch: Any, index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    major, minor = properties.major, properties.minor
    text = f"cuda:{index} {properties.name}, {properties.total_memory / GIB:.0f} GiB, capability {major}.{minor}"
    built = [int(name[3:].rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    if built and 10 * major + minor < min(built):
        remedy = "install an older torch (2.11 or newer), or hide the card by CUDA_VISIBLE_DEVICES="
        return Finding("device", "error", f"{text}: torch {torch.__version__} has no kernels for it", remedy)
    if major < 8:
        return Finding("device", "warning", f"{text}: no bfloat16", "trainer.precision=16-mixed in place of bf16-mixed")
    return Finding("device", "ok", text)


# --- folders ----------------------------------------------------------------------------------------------------------


def folder(name: str, path: Path) -> Iterator[Finding]:
    """Check that a folder, or where it would be made, can be written and locked, and has room."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    free = shutil.disk_usage(there).free
    text = f"{path}, {free / GIB:.1f} GiB free"
    other = "paths.outputs=FOLDER" if name == "outputs" else "export TMPDIR=FOLDER"
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding(name, "error", f"{path} cannot be written and locked ({reason})", f"choose another: {other}")
        return
    if free < NO_DISK:
        yield Finding(name, "error", f"{text}: the disk is full", f"free some, or choose another: {other}")
    elif free < LITTLE_DISK:
        yield Finding(name, "warning", f"{text}: saved models fill it", f"save_model=false, or {other}")
    else:
        yield Finding(name, "ok", text)


def inputs(paths: Mapping[str, Any]) -> Iterator[Finding]:
    """Say where data and models come from."""
    for key in ("data", "models"):
        value = paths.get(key)
        if value is None:
            yield Finding("inputs", "ok", f"paths.{key} is not set: {key} come from the hub")
        elif not Path(value).is_dir():
            yield Finding("inputs", "error", f"paths.{key}={value} is no folder", f"name one that is: paths.{key}=…")
        else:
            names = sorted(each.name for each in Path(value).iterdir() if each.is_dir())
            yield Finding("inputs", "ok", f"paths.{key}={value}: {', '.join(names[:8]) or 'empty'}")


def caches() -> Iterator[Finding]:
    """Say where downloads and derived files lie, and how large they are."""
    from huggingface_hub import constants

    from essential_sparsity.inputs import cache_folder

    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    known = {"hub downloads": constants.HF_HUB_CACHE, "data sets": datasets, "our tokens and images": cache_folder()}
    for name, path in known.items():
        size, whole = folder_size(Path(path), seconds=SECONDS_PER_CACHE)
        shown = f"{'' if whole else 'more than '}{size / GIB:.2f} GiB" if Path(path).is_dir() else "not there yet"
        yield Finding("cache", "ok", f"{name}: {path}, {shown}")


def folder_size(path: Path, *, seconds: float) -> tuple[int, bool]:
    """Give the bytes of a folder's files, links not followed, and whether there was time to count all of them."""
    deadline, total, todo = time.monotonic() + seconds, 0, [path]
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:  # gone, or not ours: nothing of it is counted
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                todo.append(Path(entry.path))
            else:
                total += entry.stat(follow_symlinks=False).st_size
        if time.monotonic() > deadline:
            return total, not todo
    return total, True


# --- hub --------------------------------------------------------------------------------------------------------------


class HubQuestion(threading.Thread):
    """Ask the hub in a thread of its own: a name server that does not answer holds nobody up."""

    def __init__(self, timeout: float, endpoint: str | None = None) -> None:
        super().__init__(daemon=True)
        self.timeout, self.endpoint = timeout, endpoint or os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        self.problem: str | None = f"no answer within {timeout:g} s"
        self.seconds = 0.0

    @functools.cached_property
    def offline(self) -> bool:
        """Whether the user told Hugging Face's libraries to ask nobody."""
        return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

    def run(self) -> None:
        """Ask for the first page's header."""
        if self.offline:
            return
        started = time.monotonic()
        try:
            asked = urllib.request.Request(self.endpoint, method="HEAD")
            with urllib.request.urlopen(asked, timeout=self.timeout):
                self.problem = None
        except urllib.error.HTTPError as error:
            self.problem = f"answers {error.code}"
        except OSError as error:
            self.problem = " ".join(str(getattr(error, "reason", error)).split())
        self.seconds = time.monotonic() - started

    def answer(self) -> Iterator[Finding]:
        """Wait for the answer, no longer than the timeout."""
        if self.offline:
            text = "offline, as HF_HUB_OFFLINE says: only local folders and what is cached"
            yield Finding("hub", "ok", text)
            return
        self.join(self.timeout)
        if self.problem is None:
            yield Finding("hub", "ok", f"{self.endpoint} answers in {self.seconds:.1f} s")
            return
        remedy = "paths.data=FOLDER paths.models=FOLDER, or experiment=demo, which downloads nothing"
        yield Finding("hub", "warning", f"{self.endpoint}: {self.problem}", remedy)
