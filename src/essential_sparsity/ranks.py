"""The processes of a run on several devices: started together, ended together, and what the first to fail said.

A rank is `python -m essential_sparsity.apps.rank <run folder>`, which reads what was asked from `ranks/asked.json`
there. It ends when the process that started it does, however that dies: its standard input closes.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from essential_sparsity.runs import Run, read_json, write_json

MODULE = "essential_sparsity.apps.rank"
FOLDER, ASKED, OUTPUT = "ranks", "asked.json", "output.txt"

SETTLING = 2.0
"""Seconds that the other ranks have to end by themselves once one has failed; then they are killed."""

LINGERING = 60.0
"""Seconds that the other ranks have to end once rank 0 has written the run folder."""

POLLED_EVERY = 0.05


class RankError(RuntimeError):
    """A rank failed; subclasses are made on the spot, by the name of what it raised. `step` as in failure.json."""

    step: int | None = None


def rank_run(run: Run, rank: int) -> Run:
    """Give a rank's own folder: its lock, its output, its failure.json."""
    return Run(run.path / FOLDER / str(rank))


def launch(asked: Mapping[str, Any], run: Run, number: int) -> None:
    """Start the ranks of a run, wait until all have ended, and remove what they left but for the run itself.

    `asked` is what asked.json holds beside the ranks' meeting place. Ctrl-C and SIGTERM end all ranks at once.
    Errors: RankError, named as what the first rank to fail raised; the others are ended with it.
    """
    folder = run.path / FOLDER
    for rank in range(number):
        own = rank_run(run, rank).path
        own.mkdir(parents=True, exist_ok=True)
        (own / "failure.json").unlink(missing_ok=True)
    place = folder / f"meeting-{secrets.token_hex(4)}"  # a rank of an earlier start that is still alive has another
    write_json(folder / ASKED, {**asked, "place": str(place)})
    processes: list[subprocess.Popen[bytes]] = []
    with terminable():
        try:
            for rank in range(number):
                processes.append(_started(run, rank, number))
            codes = _ended(processes)
        finally:
            for process in processes:
                _kill(process)
    failure = _failure(run, codes) if any(codes) else None
    shutil.rmtree(folder, ignore_errors=True)
    if failure is not None:
        raise failure


def _started(run: Run, rank: int, number: int) -> subprocess.Popen[bytes]:
    """Start one rank in a session of its own; rank 0 speaks through our standard error, the others into a file."""
    threads = max(1, len(os.sched_getaffinity(0)) // number)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns where it looked for unused weights in vain
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine; its name may not resolve
    environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    command = [sys.executable, "-P", "-m", MODULE, str(run.path)]
    with contextlib.ExitStack() as stack:
        told: IO[Any] | int = 2
        if rank:
            told = stack.enter_context((rank_run(run, rank).path / OUTPUT).open("wb"))
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=told, stderr=told, env=environment, start_new_session=True
        )


def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait for all ranks, and give their exit codes; None for those that had to be ended because another failed."""
    until = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return codes
        if any(codes):
            until = min(until, time.monotonic() + SETTLING)
        elif codes[0] == 0:
            until = min(until, time.monotonic() + LINGERING)
        if time.monotonic() > until:
            return codes
        time.sleep(POLLED_EVERY)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a rank and what it started, at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _failure(run: Run, codes: Sequence[int | None]) -> RankError:
    """Give the error of the rank that failed first; one that was killed comes before those that lost it."""
    files = {rank: rank_run(run, rank).path / "failure.json" for rank in range(len(codes))}
    told = sorted((rank for rank, file in files.items() if file.is_file()), key=lambda r: files[r].stat().st_mtime_ns)
    silent = [rank for rank, code in enumerate(codes) if code and rank not in told]
    if silent:
        rank, code = silent[0], codes[silent[0]]
        assert code is not None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        content: dict[str, Any] = {"kind": "RankEnded", "traceback": _output(run, rank), "step": None}
        content["message"] = f"{how}: look at its memory, then start the same command again"
        where = f"rank {rank} of {len(codes)} "
    else:
        rank = told[0]
        content, where = read_json(files[rank]), f"rank {rank} of {len(codes)}: "
    error = type(str(content["kind"]), (RankError,), {})(f"{where}{content['message']}")
    error.step = content["step"]
    error.add_note(str(content["traceback"]))
    return error


def _output(run: Run, rank: int) -> str:
    """Give the end of what a rank printed; rank 0 prints where we do."""
    file = rank_run(run, rank).path / OUTPUT
    return file.read_text(errors="replace")[-4000:] if file.is_file() else ""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end this block as Ctrl-C does, where nobody else handles it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- inside a rank ----------------------------------------------------------------------------------------------------


def asked_of(run: Run) -> tuple[dict[str, Any], Path]:
    """Read what a rank is asked for: the content that `launch` was given, and where the ranks meet."""
    content = read_json(run.path / FOLDER / ASKED)
    return content, Path(content.pop("place"))


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone; signals to it are its own, not this one's."""
    heard = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}  # schedulers send them to all processes
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)

    def watch() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
