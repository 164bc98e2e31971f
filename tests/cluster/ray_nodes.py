"""A Ray cluster of two nodes on this host, in a network of its own: nothing outside can reach it, nor it anything.

Needs root, for the network namespace.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.2:6399"

STORE = "--object-store-memory=100000000"


def missing() -> str | None:
    """Say what is not here that this needs; None where all is."""
    if os.geteuid() != 0:
        return "a network namespace needs root"
    lacking = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    return f"not installed here: {', '.join(lacking)} (apt: util-linux iproute2)" if lacking else None


@dataclass(frozen=True)
class RayNodes:
    """A cluster that runs; `inside` begins a command in its network, `environment` lets it in."""

    inside: list[str]
    environment: dict[str, str]
    nodes: list[subprocess.Popen[bytes]]

    def kill_second(self) -> None:
        """Kill the second node at once, as a machine that loses its power: all that `ray start` began there."""
        for process in _below(self.nodes[1].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def ray_nodes(folder: Path, environment: Mapping[str, str]) -> Iterator[RayNodes]:
    """Start two nodes of one CPU each, and stop them at the end."""
    folder.mkdir(parents=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    place = {**environment, **own}
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    inside = ["nsenter", f"--target={holder.pid}", "--net"]
    found = RayNodes(inside, place, [])
    short = tempfile.mkdtemp(prefix="ray-")  # sockets' paths are short
    try:
        _until_zero([*inside, "ip", "link", "set", "lo", "up"], place, 10)
        head = ["--head", "--node-ip-address=127.0.0.2", "--port=6399", "--include-dashboard=false"]
        second = [f"--address={ADDRESS}", "--node-ip-address=127.0.0.3"]
        for words in ([*head, f"--temp-dir={short}"], second):
            found.nodes.append(
                _node([*inside, *_ray(), "start", "--block", "--num-cpus=1", STORE, *words], place, folder)
            )
            number = len(found.nodes)
            count = [*inside, sys.executable, "-c", _COUNT.format(number=number)]
            _until_zero(count, place, 120, needs=found.nodes[-1])
        yield found
    finally:
        for node in found.nodes:
            for process in [*_below(node.pid), node.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            node.wait()
        holder.kill()
        holder.wait()
        shutil.rmtree(short, ignore_errors=True)


_COUNT = f"""
import sys, ray
ray.init(address="{ADDRESS}", log_to_driver=False, logging_level="ERROR")
sys.exit(sum(node["Alive"] for node in ray.nodes()) != {{number}})
"""


def _ray() -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts"]


def _node(words: Sequence[str], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "nodes.out").open("ab") as output:
        return subprocess.Popen(
            words, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder
        )


def _until_zero(
    words: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    *,
    needs: subprocess.Popen[bytes] | None = None,
) -> None:
    """Run a command until it ends well; TimeoutError after so long, or as soon as what it needs has ended."""
    until = time.monotonic() + seconds
    while True:
        done = subprocess.run(words, env=dict(environment), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > until or (needs is not None and needs.poll() is not None):
            raise TimeoutError(f"{' '.join(words)[:200]}: {done.stderr[-2000:]}")
        time.sleep(0.5)


def _below(process: int) -> list[int]:
    """List what a process started, and what those did, the last first."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [inner for child in map(int, children) for inner in (*_below(child), child)]
    return []
