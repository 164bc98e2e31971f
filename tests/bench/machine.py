"""What the machine can do at best, beside which every figure stands: memory bandwidth, rate of matrix products."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from essential_sparsity import provenance
from tests.bench.figure import Figure
from tests.bench.measure import seconds


@dataclass(frozen=True)
class Rates:
    """The machine's own limits: bytes per second and floating-point operations per second."""

    read: float
    copy: float  # bytes read and bytes written, both counted
    fp32: float
    bf16: float


@cache
def rates(quick: bool = False) -> Rates:
    """Measure all rates once per process, with as many threads as torch uses: the best of several tries each."""
    size, edge = (2**22, 256) if quick else (2**28, 2048)
    read, copy = _memory_rates(size)
    return Rates(read, copy, _matrix_rate(edge, torch.float32), _matrix_rate(edge, torch.bfloat16))


def _memory_rates(size: int) -> tuple[float, float]:
    source, target = torch.ones(size), torch.empty(size)
    read = max(source.nbytes / seconds(source.sum) for _ in range(5))
    copy = max(2 * source.nbytes / seconds(lambda: target.copy_(source)) for _ in range(5))
    return read, copy


def _matrix_rate(edge: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(edge, edge).to(dtype), torch.randn(edge, edge).to(dtype)
    return max(2 * edge**3 / seconds(lambda: left @ right) for _ in range(5))


def run(quick: bool = False) -> Iterator[Figure]:
    """Show the machine's limits."""
    found, threads = rates(quick), f"{torch.get_num_threads()} threads"
    size = "16 MiB" if quick else "1 GiB"
    yield Figure(f"memory: read, sum of {size} fp32, {threads}", limit=found.read / 1e9, unit="GB/s")
    yield Figure(f"memory: copy, read + written, {size}, {threads}", limit=found.copy / 1e9, unit="GB/s")
    edge = 256 if quick else 2048
    yield Figure(f"matrix product {edge}³, fp32, {threads}", limit=found.fp32 / 1e12, unit="TFLOP/s")
    yield Figure(f"matrix product {edge}³, bf16, {threads}", limit=found.bf16 / 1e12, unit="TFLOP/s")


def describe() -> dict[str, Any]:
    """Describe the machine without naming it: processor, cores, memory, threads, accelerator."""
    return {
        "system": platform.system(),
        "processor": _processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()


def versions() -> dict[str, str]:
    """Give the versions that decide a figure."""
    return provenance.versions()
