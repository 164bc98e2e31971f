"""Several processes of one host: a killed one takes no other's point, and a point that always kills fails alone."""

import os
import signal
import time

import pytest

from essential_sparsity.runs import read_runs
from tests.cluster import points
from tests.cluster.conftest import need
from tests.cluster.points import NUM_STEPS, OFTEN, SWEEP, Steps, sweep
from tests.soak import outcome

pytestmark = pytest.mark.cluster

OFTEN_AT = 10
"""Steps after which a checkpoint is surely there."""

LAUNCHER = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def test_a_killed_worker_takes_no_other_point(alone, tmp_path):
    need("joblib")
    steps = Steps(tmp_path / "steps.txt")
    environment = points.settings(tmp_path, pace=(5 / NUM_STEPS, 5 / NUM_STEPS))
    driver = points.start([*SWEEP, OFTEN, *LAUNCHER], tmp_path, environment)
    while len(now := _now(steps)) < 2 or len(steps.read()) < 4 or not OFTEN_AT < max(now.values()) < NUM_STEPS - 20:
        assert driver.poll() is None, points.told(tmp_path)
        time.sleep(0.1)
    other, victim = sorted(now, key=lambda process: OFTEN_AT < now[process] < NUM_STEPS - 20)
    os.kill(victim, signal.SIGKILL)
    assert driver.wait(timeout=1800) == 0, points.told(tmp_path)
    text = points.told(tmp_path)
    assert "1 of 12 points lost their worker" in text
    assert "12 points: 12 computed, 0 there already, 0 failed" in text
    assert len(steps.processes()) == 4, "the two, one in the killed one's place, and one for what it had lost"
    assert len([run for run in steps.read().values() if other in run]) > 2
    found = outcome.differences(alone(OFTEN), outcome.left(tmp_path / "outputs"))
    assert not any(found.values()), found
    assert sum(record.metrics["resumed"] for record in read_runs(tmp_path / "outputs/cluster") if record.metrics) == 1


def _now(steps: Steps) -> dict[int, int]:
    """Give the step that each process did last."""
    lines = [line.rsplit(" ", 2) for line in steps.file.read_text().splitlines()] if steps.file.exists() else []
    return {int(process): int(step) for _, process, step in lines}


def test_a_point_that_always_kills_its_worker_fails_alone(tmp_path):
    need("joblib")
    environment = points.settings(tmp_path) | {"DEADLY": "sparsity=0.3"}
    code, told = points.run([*sweep("sparsity=0.0,0.3,0.6"), *LAUNCHER], tmp_path, environment)
    assert code == 1
    assert "3 points: 2 computed, 0 there already, 1 failed" in told
    assert "WorkerDied: its worker died 3 times" in told and "Traceback" not in told
    (failed,) = [record for record in read_runs(tmp_path / "outputs/cluster") if record.failure]
    assert failed.failure and failed.failure["kind"] == "WorkerDied"

    code, told = points.run([*sweep("sparsity=0.0,0.3,0.6"), *LAUNCHER], tmp_path, points.settings(tmp_path))
    assert code == 0 and "3 points: 1 computed, 2 there already, 0 failed" in told
