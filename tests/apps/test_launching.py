"""Launchers: what one loses is launched again, what cannot be is told, and nothing goes on under another configuration.

A launcher that loses what a test says stands in for joblib's; the clusters themselves are in tests/cluster.
"""

import json
import os
import signal
import sys

import pytest

from essential_sparsity.apps import submitted, workers
from essential_sparsity.apps.guard import Outcome
from essential_sparsity.apps.launching import lost
from essential_sparsity.apps.submitted import Submitted
from essential_sparsity.runs import read_runs

TINY = "train backbone=vit_tiny data=digits name=s trainer.max_epochs=1 trainer.max_steps=2 hydra/launcher=joblib"


@pytest.fixture
def launched(monkeypatch):
    """Put a launcher in joblib's place that does each launch's points here, but as `fates` say; give what it was given.

    A fate is called with the overrides of all points of a launch and what does one of them.
    """
    given, fates = [], []

    def on_cards(launcher, points, first):
        from hydra._internal.core_plugins.basic_launcher import BasicLauncher

        here = BasicLauncher()
        here.setup(hydra_context=launcher.hydra_context, task_function=launcher.task_function, config=launcher.config)
        given.append([next((word for word in point if word.startswith("sparsity=")), "curve") for point in points])

        def do(point):
            return here.launch([point], initial_job_idx=first)[0]

        return fates.pop(0)(points, do) if fates else [do(point) for point in points]

    monkeypatch.setattr(workers, "require", lambda name: None)
    monkeypatch.setattr(workers, "on_cards", on_cards)
    return given, fates


def test_what_is_lost_is_launched_again_and_nothing_else(command, launched):
    given, fates = launched
    fates.append(lambda points, do: [do(points[0]), lost(points[1], "killed"), do(points[2])])
    code, out, err = command(f"{TINY} sparsity=0.2,0.4,0.6")
    assert code == 0 and "3 points: 3 computed, 0 there already, 0 failed" in out
    assert given == [["sparsity=0.2", "sparsity=0.4", "sparsity=0.6"], ["sparsity=0.4"]]
    assert "1 of 3 points lost their worker, as the first: killed" in err


def test_points_of_a_launcher_that_ends_with_its_first_death_are_looked_up(command, launched):
    given, fates = launched

    def ends(points, do):
        do(points[0])
        raise RuntimeError("a worker was killed")

    fates.append(ends)
    code, out, err = command(f"{TINY} sparsity=0.2,0.4")
    assert code == 0 and "0 failed" in out
    assert given == [["sparsity=0.2", "sparsity=0.4"], ["sparsity=0.4"]]
    assert "RuntimeError: a worker was killed" in err


def test_a_point_that_always_loses_its_worker_fails_alone(command, launched, tmp_path):
    given, fates = launched
    fates += [lambda points, do: [lost(point, "killed") if "sparsity=0.4" in point else do(point) for point in points]]
    fates += [lambda points, do: [lost(points[0], "killed")]] * 2
    code, out, _ = command(f"{TINY} sparsity=0.2,0.4")
    assert code == 1 and len(given) == 3
    assert "2 points: 1 computed, 0 there already, 1 failed" in out
    assert "WorkerDied: its worker died 3 times, the last time: killed" in out

    given.clear()
    code, out, _ = command(f"{TINY} sparsity=0.2,0.4")
    assert code == 0 and "1 computed, 1 there already" in out
    assert given == [["sparsity=0.4"]], "a finished point needs no worker"


def test_a_deadly_point_takes_no_other_even_where_the_launcher_ends_with_it(command, launched):
    given, fates = launched

    def ends(points, do):
        for point in points:
            if "sparsity=0.2" in point:
                raise RuntimeError("a worker was killed")
            do(point)

    fates += [ends, ends, ends]
    code, out, _ = command(f"{TINY} sparsity=0.2,0.4")
    assert given == [["sparsity=0.2", "sparsity=0.4"]] * 2 + [["sparsity=0.2"], ["sparsity=0.4"]]
    assert code == 1 and "1 computed, 0 there already, 1 failed" in out
    assert "sparsity=0.2: WorkerDied: its worker died 3 times, the last time: RuntimeError: a worker was killed" in out


def test_a_launcher_that_cannot_launch_is_one_line(command, launched):
    given, fates = launched

    def refuses(points, do):
        raise ValueError("no partition of that name")

    fates.append(refuses)
    code, _, err = command(f"{TINY} sparsity=0.2,0.4")
    assert code == 2 and err.strip().splitlines()[-1] == "essential-sparsity: error: no partition of that name"
    assert len(given) == 1


def test_a_point_that_cannot_be_completed_fails_before_it_is_launched(command, launched):
    given, _ = launched
    code, out, _ = command(f"{TINY} sparsity=0.2 seed=0,x")
    assert code == 1 and "seed='x' cannot be" in out and "1 computed" in out
    assert given == [["sparsity=0.2"]], "one point"


def edited(tmp_path, fates, file, key, before, after):
    """Write a configuration file of one's own, and edit it once its points were submitted."""
    own = tmp_path / "conf" / file
    own.parent.mkdir(parents=True)
    own.write_text(f"{key}: {before}\n")

    def changes(points, do):
        own.write_text(f"{key}: {after}\n")
        return [do(point) for point in points]

    fates.append(changes)


def test_a_configuration_that_changed_since_submission_is_refused(command, launched, tmp_path):
    _, fates = launched
    edited(tmp_path, fates, "optimizer/own.yaml", "defaults: [adamw]\nlr", 0.002, 0.5)
    code, out, _ = command(f"{TINY} optimizer=own sparsity=0.2")
    line = "the configuration changed since this point was submitted: optimizer.lr: 0.5, submitted: 0.002"
    assert code == 1 and f"{line}: put it back as it was, or start the sweep again" in out
    (record,) = read_runs(tmp_path / "outputs/s")
    assert record.failure and record.failure["kind"] == "ChangedConfiguration"
    assert record.config["optimizer"]["lr"] == 0.002, "the failure is told where the submitted point is"


def test_a_curve_under_another_configuration_is_refused_without_a_folder_of_its_own(command, launched, tmp_path):
    _, fates = launched
    edited(tmp_path, fates, "data/own.yaml", "defaults: [digits]\nnum_evaluation_rows", 50, 60)
    code, out, _ = command("evaluate backbone=vit_tiny data=own name=c hydra/launcher=joblib sparsities=[0.0,0.5]")
    assert code == 1 and "data.num_evaluation_rows: 60, submitted: 50" in out
    assert not list((tmp_path / "outputs").glob("c/*/run.json"))


def test_what_only_says_where_to_compute_may_change(command, launched, tmp_path):
    _, fates = launched
    edited(tmp_path, fates, "trainer/own.yaml", "defaults: [default]\ncheckpoint_minutes", 10, 1)
    code, out, _ = command(f"{TINY} trainer=own sparsity=0.2")
    assert code == 0 and "1 computed" in out


def test_a_run_folder_that_is_held_is_waited_for(monkeypatch):
    monkeypatch.setattr(submitted, "LOOKED_EVERY", 0.01)
    results = [Outcome("failed", [], kind="BlockingIOError")] * 2 + [Outcome("finished", [])]
    assert Submitted(lambda composed: results.pop(0))._patiently(None).status == "finished"  # type: ignore[arg-type]
    assert not results


def test_a_search_for_the_turn_goes_through_launchers(command, launched):
    given, fates = launched
    fates.append(lambda points, do: [lost(point, "killed") for point in points])
    words = f"{TINY} hydra/sweeper=turning_point hydra.sweeper.noise=false hydra.sweeper.tolerance=0.3 seed=0"
    code, out, err = command(words)
    assert code == 0 and "0 failed" in out, err
    assert given[0] == given[1], "what was lost is launched again"


@pytest.mark.parametrize("name", workers.PLUGINS)
def test_without_the_extra_one_line_says_what_to_install(name, command, monkeypatch):
    plugin = workers.PLUGINS[name]
    monkeypatch.setitem(sys.modules, f"hydra_plugins.hydra_{plugin}_launcher", None)
    code, out, err = command(f"train backbone=vit_tiny data=digits hydra/launcher={name} sparsity=0.2,0.4")
    assert code == 2 and not out
    assert err.strip() == (
        f"essential-sparsity: error: hydra/launcher={name} needs hydra-{plugin}-launcher, an extra: "
        "pip install 'essential-sparsity[launchers]'"
    )


def test_without_slurm_one_line_says_where_to_start(monkeypatch):
    monkeypatch.setattr(workers.importlib, "import_module", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="needs sbatch, which is not on PATH: start it on a node of the cluster"):
        workers.require("submitit_slurm")


@pytest.mark.parametrize("cards, asked, assigned", [
    (["0", "1"], None, ["0", "1"]),
    (["2", "5"], 4, ["2", "5", "2", "5"]),
    (["0", "1", "2"], 1, ["0"]),
    ([], 2, [None, None]),
])  # fmt: skip
def test_each_worker_has_a_card_of_its_own(cards, asked, assigned, monkeypatch):
    monkeypatch.setattr(workers, "visible_cards", lambda: cards)
    assert [made.get("CUDA_VISIBLE_DEVICES") for made in workers.assignments(asked)] == assigned


def test_workers_share_the_cores_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(workers, "visible_cards", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert {made["OMP_NUM_THREADS"] for made in workers.assignments(4)} == {"2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {made["OMP_NUM_THREADS"] for made in workers.assignments(4)} == {"3"}


def test_a_warned_job_saves_leaves_and_goes_on_with_the_same_result(command, launched, tmp_path, monkeypatch):
    """The scheduler's signal amid the third step of six: the worker leaves after it, its next start finishes."""
    _, fates = launched
    (tmp_path / "warning.py").write_text(WARNING)
    words = "train backbone=vit_tiny data=digits name=s trainer.max_epochs=1 trainer.max_steps=6 sparsity=0.3 seed=0"
    words += " trainer.accelerator=cpu +callbacks.warning._target_=warning.Warned"
    code, _, _ = command(f"{words} paths.outputs=calm")
    assert code == 0

    def leaves(points, do):
        monkeypatch.setenv("WARN_AT", "2")
        before = signal.signal(signal.SIGUSR2, lambda *_: sys.exit(-1))
        try:
            with pytest.raises(SystemExit):
                do(points[0])
        finally:
            signal.signal(signal.SIGUSR2, before)
        monkeypatch.delenv("WARN_AT")
        return [do(points[0])]

    fates.append(leaves)
    code, out, _ = command(f"{words} hydra/launcher=joblib paths.outputs=rough")
    assert code == 0 and "1 computed" in out
    (calm,), (rough,) = (read_runs(tmp_path / place / "s") for place in ("calm", "rough"))
    assert calm.metrics and rough.metrics and rough.metrics["resumed"] and not calm.metrics["resumed"]
    assert json.dumps(calm.metrics["metrics"]) == json.dumps(rough.metrics["metrics"])
    assert calm.layers().equals(rough.layers())


WARNING = """
import os, signal

from pytorch_lightning import Callback


class Warned(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("WARN_AT") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGUSR2)
"""
