"""SLURM's daemons, two nodes: time limits, pre-emption, requeues and kills change no result and lose no point."""

import contextlib
import itertools
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from essential_sparsity.runs import read_json, read_runs
from tests.cluster import points
from tests.cluster.points import NUM_STEPS, SLOW, SWEEP, Steps
from tests.cluster.slurm import Job, Slurm
from tests.soak import outcome

pytestmark = pytest.mark.cluster

MINUTES = int(os.environ.get("CLUSTER_MINUTES", "2"))
"""Time limit of a job: three times what a process needs to start, at least."""

LAUNCHER = [
    "hydra/launcher=submitit_slurm", f"hydra.launcher.timeout_min={MINUTES}", "hydra.launcher.signal_delay_s=60",
]  # fmt: skip

LONGEST = 3600.0


class Faults:
    """What happens to jobs that are training, each to another one: SLURM's requeue, its signal, a kill, pre-emption."""

    def __init__(self, cluster: Slurm, steps: Steps) -> None:
        self.cluster, self.steps = cluster, steps
        self.todo = [self.kill, self.requeue, self.signal, self.preempt]
        self.hit: dict[str, str] = {}

    def next(self) -> None:
        """Let the next fault hit a job that trains and that none has hit, where there is one."""
        half = {process for of in self.steps.read().values() for process, did in of.items() if did[-1] < NUM_STEPS / 2}
        for job in self.cluster.running() if self.todo else []:
            process = self.cluster.process(job.name)
            if process in half and job.name not in self.hit:
                self.todo[0](job, process)
                self.hit[job.name] = self.todo.pop(0).__name__
                return

    def kill(self, job: Job, process: int) -> None:
        """Kill the process, as a machine short of memory does: SLURM does not put it back."""
        os.kill(process, signal.SIGKILL)

    def requeue(self, job: Job, process: int) -> None:
        """Put the job back as an administrator does: SIGTERM, then SIGKILL."""
        self.cluster.ask("scontrol", "requeue", job.name)

    def signal(self, job: Job, process: int) -> None:
        """Send what SLURM sends ahead of an end."""
        self.cluster.ask("scancel", "--signal=USR2", job.name)

    def preempt(self, job: Job, process: int) -> None:
        """Submit what takes a node from the others."""
        words = ["--partition=hi", "--exclusive", "--wrap=sleep 2", "--output=/dev/null", "--job-name=hi"]
        self.cluster.ask("sbatch", *words)


@pytest.fixture(scope="module")
def disturbed(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Faults, int]:
    """Run the sweep as jobs that faults hit; give its folder, the faults, and the exit code."""
    folder = tmp_path_factory.mktemp("slurm_sweep")
    slow = 1.1 * 60 * MINUTES / NUM_STEPS
    environment = {**points.settings(folder, pace=(10 / NUM_STEPS, slow)), **_clients(cluster)}
    faults = Faults(cluster, Steps(folder / "steps.txt"))
    driver = points.start([*SWEEP, *LAUNCHER], folder, environment)
    until = time.monotonic() + LONGEST
    try:
        while driver.poll() is None and time.monotonic() < until:
            with contextlib.suppress(ProcessLookupError, subprocess.SubprocessError):  # it was over just then
                faults.next()
            time.sleep(0.5)
        assert driver.returncode is not None, f"not over after {LONGEST} s: {points.told(folder)[-2000:]}"
    finally:
        driver.kill()
        driver.wait()
    return folder, faults, driver.returncode


def _clients(cluster: Slurm) -> dict[str, str]:
    return {key: cluster.environment[key] for key in ("SLURM_CONF", "PATH")}


def test_a_sweep_with_requeues_and_time_outs_leaves_what_one_host_does(disturbed, alone):
    folder, faults, code = disturbed
    assert code == 0, points.told(folder)[-3000:]
    assert "12 points: 12 computed, 0 there already, 0 failed" in points.told(folder)
    assert sorted(faults.hit.values()) == ["kill", "preempt", "requeue", "signal"]
    found = outcome.differences(alone(), outcome.left(folder / "outputs"))
    assert not any(found.values()), found


def test_jobs_that_slurm_warned_go_on_at_the_very_step(disturbed):
    folder, _, _ = disturbed
    runs = Steps(folder / "steps.txt").read()
    slow = [processes for run, processes in runs.items() if SLOW in run]
    assert len(slow) == 3 and all(len(processes) > 1 for processes in slow), "the time limit ended none of these"
    gone_on = 0
    for processes in runs.values():
        did = list(processes.values())
        for before, after in itertools.pairwise(did):
            assert after[0] <= before[-1] + 1, "a step was left out"
            gone_on += after[0] == before[-1] + 1 and after[0] > 0
    assert gone_on >= 3, f"only {gone_on} of the restarts went on where they were"
    resumed = [record.metrics["resumed"] for record in read_runs(folder / "outputs/cluster") if record.metrics]
    assert sum(resumed) >= 3


def test_a_killed_job_is_submitted_again_and_told(disturbed):
    folder, _, _ = disturbed
    assert "1 of 12 points lost their worker" in points.told(folder)


def test_a_requeued_job_refuses_another_configuration(cluster, tmp_path):
    environment = {**points.settings(tmp_path, pace=(1.0, 1.0)), **_clients(cluster)}
    own = tmp_path / "conf/optimizer/own.yaml"
    own.parent.mkdir(parents=True)
    text = "defaults: [adamw]\nlr: 0.002\n"
    own.write_text(text)
    words = [word for word in points.sweep("sparsity=0.3") if not word.startswith("optimizer")]
    words += ["optimizer=own", *LAUNCHER[:1], "hydra.launcher.timeout_min=60"]
    driver, steps = points.start(words, tmp_path, environment), Steps(tmp_path / "steps.txt")
    while not any(cluster.process(job.name) in steps.processes() for job in cluster.running()):
        assert driver.poll() is None, points.told(tmp_path)
        time.sleep(0.5)
    own.write_text(text.replace("0.002", "0.5"))
    (job,) = cluster.running()
    cluster.ask("scancel", "--signal=USR2", job.name)
    assert driver.wait(timeout=LONGEST) == 1
    assert "changed since this point was submitted: optimizer.lr: 0.5, submitted: 0.002" in points.told(tmp_path)
    (record,) = read_runs(tmp_path / "outputs/cluster")
    assert record.failure and record.failure["kind"] == "ChangedConfiguration"
    assert (record.path / "checkpoints/last.ckpt").is_file()

    own.write_text(text)
    code, told = points.run(words, tmp_path, {**environment, "PACE": "0,0"})
    assert code == 0, told
    assert read_json(record.path / "metrics.json")["resumed"]


def test_ctrl_c_cancels_the_jobs_and_the_same_command_goes_on(cluster, tmp_path):
    environment = {**points.settings(tmp_path, pace=(1.0, 1.0)), **_clients(cluster)}
    words = [*points.sweep("sparsity=0.3,0.6"), *LAUNCHER[:1], "hydra.launcher.timeout_min=60"]
    driver, steps = points.start(words, tmp_path, environment), Steps(tmp_path / "steps.txt")
    while len(steps.read()) < 2:
        assert driver.poll() is None, points.told(tmp_path)
        time.sleep(0.5)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=120) == 130
    assert "interrupted: the same command goes on from what is there" in points.told(tmp_path)
    until = time.monotonic() + 60
    while cluster.jobs() and time.monotonic() < until:
        time.sleep(0.5)
    assert not cluster.jobs()

    code, told = points.run(words, tmp_path, {**environment, "PACE": "0,0"})
    assert code == 0 and "2 points: 2 computed" in told, told
