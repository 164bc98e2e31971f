"""What a run says of where it came from: versions, git revision, machine. Recorded and shown, never refused."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

PACKAGES = ("essential-sparsity", "torch", "pytorch-lightning", "transformers", "timm", "datasets", "numpy")


@cache
def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that decide a run's numbers; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_revision() -> str | None:
    """Give the revision of the checkout that this code runs from, `+` behind it where changed; None in a wheel."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    tracked = subprocess.run(
        ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 and tracked.returncode == 0 else None


def now() -> str:
    """Give the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, str | int | None]:
    """Describe the machine without naming it: processor kind and number of cores that this process may use."""
    return {"system": platform.system(), "processor": platform.machine(), "cores": len(os.sched_getaffinity(0))}
