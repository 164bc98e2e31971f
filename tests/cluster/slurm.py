"""A real SLURM of two virtual nodes on this host, in a folder of its own: daemons are started and stopped by it.

Needs root and the Debian packages slurmctld, slurmd, slurm-client and munge. There is no accounting: a `sacct` that
asks the controller stands in its place on PATH, as submitit polls it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "squeue", "scancel")

SBIN = "/usr/sbin:/usr/local/sbin"

CONFIGURATION = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
MinJobAge=86400
ReturnToService=2
KillWait=10
SlurmdTimeout=15
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=20 State=UP
PartitionName=hi Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""

SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
scontrol show job -o | awk '{ id = ""; job = ""; task = ""; state = ""; nodes = ""
  for (i = 1; i <= NF; i++) { split($i, pair, "=")
    if (pair[1] == "JobId") id = pair[2]
    if (pair[1] == "ArrayJobId") job = pair[2]
    if (pair[1] == "ArrayTaskId") task = pair[2]
    if (pair[1] == "JobState") state = pair[2]
    if (pair[1] == "NodeList") nodes = pair[2] }
  if (task ~ /^[0-9]+$/) id = job "_" task
  if (task == "" || task ~ /^[0-9]+$/) print id "|" state "|" nodes }'
"""


def missing() -> str | None:
    """Say what is not here that this needs; None where all is."""
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    lacking = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}") is None]
    return f"SLURM is not installed here: {', '.join(lacking)} (apt: slurmctld slurmd munge)" if lacking else None


@dataclass(frozen=True)
class Job:
    """A job as squeue shows it."""

    name: str  # 12_3 of an array, else 12
    state: str
    restarts: int


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs; `environment` is what its clients need."""

    folder: Path
    environment: dict[str, str]

    def ask(self, *words: str, seconds: float = 120) -> str:
        """Run one of SLURM's commands and give what it prints; CalledProcessError where it fails."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=seconds, check=True
        ).stdout

    def jobs(self) -> list[Job]:
        """List the jobs that are not over."""
        lines = self.ask("squeue", "--array", "--noheader", "--format=%F %K %T %i").splitlines()
        found = []
        for job, task, state, _ in map(str.split, lines):
            name = f"{job}_{task}" if task.isdecimal() else job
            found.append(Job(name, state, self.restarts(name)))
        return found

    def running(self) -> list[Job]:
        """List the jobs that run."""
        return [job for job in self.jobs() if job.state == "RUNNING"]

    def restarts(self, name: str) -> int:
        """Say how often a job was put back into the queue."""
        words = self.ask("scontrol", "show", "job", "-o", name).split()
        return next((int(word.partition("=")[2]) for word in words if word.startswith("Restarts=")), 0)

    def process(self, name: str) -> int | None:
        """Give the process that does a job's work; None where none has begun."""
        wanted = dict(zip(("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"), name.split("_")))
        if "_" not in name:
            wanted = {"SLURM_JOB_ID": name}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"python" not in words[0] or b"submitit.core._submit" not in words:  # srun has them, too
                    continue
                variables = (folder / "environ").read_bytes().split(b"\0")
                if all(f"{key}={value}".encode() in variables for key, value in wanted.items()):
                    return int(folder.name)
        return None

    def wait_until_idle(self, seconds: float = 60) -> None:
        """Wait until both nodes take jobs."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(subprocess.SubprocessError):
                if self.ask("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").split() == ["idle"] * 2:
                    return
            time.sleep(0.5)
        log = (self.folder / "slurmctld.log").read_text()[-2000:]
        raise TimeoutError(f"SLURM's nodes do not become idle within {seconds} s:\n{log}")


@contextlib.contextmanager
def slurm(folder: Path, *, cpus: int = 1) -> Iterator[Slurm]:
    """Start a SLURM of two nodes with so many CPUs each, and stop all of it at the end."""
    (folder / "bin").mkdir(parents=True)
    (folder / "state").mkdir()
    port = _free_ports(3)
    values = {"host": socket.gethostname().partition(".")[0], "folder": folder, "cpus": cpus}
    text = CONFIGURATION.format(port=port, first=port + 1, last=port + 2, **values)
    (folder / "slurm.conf").write_text(text)
    shim = folder / "bin" / "sacct"
    shim.write_text(SACCT)
    shim.chmod(0o755)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] = f"{folder / 'bin'}:{os.environ['PATH']}:{SBIN}"
    found = Slurm(folder, environment)
    with contextlib.ExitStack() as stack:
        if not Path("/run/munge/munge.socket.2").exists():
            stack.callback(_stop, _munge())
        for words in (["slurmctld", "-c", "-D"], ["slurmd", "-N", "n1", "-D"], ["slurmd", "-N", "n2", "-D"]):
            stack.callback(_stop, _daemon(words, environment, folder))
        stack.callback(_cancel_all, found)
        found.wait_until_idle()
        yield found


def _free_ports(number: int) -> int:
    """Give the first of so many ports in a row that nothing listens on."""
    for first in range(17000, 30000, 10):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + number):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise OSError("no ports are free")


def _daemon(words: Sequence[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{'-'.join(words)}.out").open("wb") as output:
        return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _munge() -> subprocess.Popen[bytes]:
    """Start munge, which vouches for users; Debian's package made its key."""
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    words = ["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--foreground"]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not Path("/run/munge/munge.socket.2").exists() and time.monotonic() < until:
        time.sleep(0.1)
    return process


def _cancel_all(cluster: Slurm) -> None:
    with contextlib.suppress(subprocess.SubprocessError):
        cluster.ask("scancel", "--user=root", "--signal=KILL")
        cluster.ask("scancel", "--user=root")
        until = time.monotonic() + 20
        while cluster.jobs() and time.monotonic() < until:
            time.sleep(0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
