"""A Ray of two nodes: killed workers and a lost node change no result and lose no point."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from essential_sparsity.runs import read_runs
from tests.cluster import points, ray_nodes
from tests.cluster.conftest import need
from tests.cluster.points import NUM_STEPS, OFTEN, SWEEP, Steps
from tests.soak import outcome

pytestmark = pytest.mark.cluster

LAUNCHER = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={ray_nodes.ADDRESS}"]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """Run the sweep while two workers, then a node are killed; give its folder, the kills, and the exit code."""
    need("ray")
    if (reason := ray_nodes.missing()) is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ray_sweep")
    environment = points.settings(folder, pace=(10 / NUM_STEPS, 10 / NUM_STEPS))
    steps, kills = Steps(folder / "steps.txt"), []
    with ray_nodes.ray_nodes(folder / "nodes", environment) as nodes:
        driver = points.start([*SWEEP, OFTEN, *LAUNCHER], folder, nodes.environment, inside=nodes.inside)
        until = time.monotonic() + 1800
        while driver.poll() is None and time.monotonic() < until:
            time.sleep(0.5)
            current = [
                (p, did[-1]) for of in steps.read().values() for p, did in of.items() if did[-1] < NUM_STEPS - 20
            ]
            alive = [process for process, step in current if step > 10 and process not in kills and _trains(process)]
            if len(kills) < 2 and alive:
                kills.append(alive[-1])
                os.kill(alive[-1], signal.SIGKILL)
            elif len(kills) == 2 and len(steps.read()) > 6:
                kills.append(0)
                nodes.kill_second()
        driver.kill()
        return folder, kills, driver.wait()


def _trains(process: int) -> bool:
    """Say whether a process is a worker of Ray that is at a point."""
    with contextlib.suppress(OSError):
        return b"_run_job" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def test_a_sweep_with_killed_workers_and_a_lost_node_leaves_what_one_host_does(disturbed, alone):
    folder, kills, code = disturbed
    assert code == 0, points.told(folder)[-3000:]
    assert len(kills) == 3, "the sweep was over before all had been killed"
    assert "12 points: 12 computed, 0 there already, 0 failed" in points.told(folder)
    found = outcome.differences(alone(OFTEN), outcome.left(folder / "outputs"))
    assert not any(found.values()), found


def test_points_of_killed_workers_go_on_from_their_checkpoints(disturbed):
    folder, _, _ = disturbed
    resumed = [record.metrics["resumed"] for record in read_runs(folder / "outputs/cluster") if record.metrics]
    assert sum(resumed) >= 2
