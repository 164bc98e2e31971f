"""A sweep whose points have several devices, through the command."""

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from essential_sparsity.apps import conf, train
from essential_sparsity.runs import read_runs, run_id


@contextlib.contextmanager
def killing(rank: int, folder: Path) -> Iterator[list[int]]:
    """Kill the first process of this rank that takes its lock, once."""
    killed: list[int] = []

    def watch() -> None:
        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            for lock in folder.glob(f"*/ranks/{rank}/.lock"):
                if text := lock.read_text():
                    os.kill(int(text), signal.SIGKILL)
                    killed.append(int(text))
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield killed
    thread.join()


@pytest.mark.slow
def test_points_of_several_devices_follow_one_another_and_a_killed_one_is_retried(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words = "train backbone=vit_tiny data=digits name=s trainer.max_epochs=1 trainer.max_steps=3 schedule=linear"
    words += " trainer=ddp trainer.devices=2 trainer.accelerator=cpu -m sparsity=0.2,0.4"
    with killing(1, tmp_path / "outputs/s") as killed:
        code, out, _ = command(words)
    assert killed and code == 1 and "2 points: 1 computed, 0 there already, 1 failed" in out
    (failed,) = [record for record in read_runs(tmp_path / "outputs/s") if record.failure]
    assert failed.failure["kind"] == "RankEnded" and "rank 1 of 2 was killed by SIGKILL" in failed.failure["message"]
    code, out, _ = command(words.replace("trainer=ddp trainer.devices=2 ", ""))  # devices are no part of a run
    assert code == 0 and "1 computed, 1 there already" in out
    runs = read_runs(tmp_path / "outputs/s")
    assert sorted(record.metrics["num_devices"] for record in runs if record.metrics) == [1, 2]
    assert not any((record.path / left).exists() for record in runs for left in ("ranks", "checkpoints"))


def test_a_curve_without_training_has_one_device(command: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = command("evaluate backbone=vit_tiny data=digits trainer.devices=2")
    assert code != 0 and "trainer.devices=2: a curve is evaluated on one device" in out + err


def test_a_rank_builds_what_the_command_asked_for_of_the_run_and_its_parent() -> None:
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        composed = compose(
            "train", overrides=["experiment=demo", "arm=sl_plain", "scale=tiny", "sparsity=0.5", "pruner=omp"]
        )
    asked = conf.complete(composed, choices={}, overrides=[])
    read = conf.Asked(**json.loads(json.dumps(dataclasses.asdict(asked))))
    (parent, _), *_ = asked.parents()
    for depth, run in enumerate([asked.run, parent]):
        stage = train.stage_at(read, depth)
        assert stage["run"] == run and run_id(stage["record"]["config"]) == run.path.name[-8:]
        assert callable(stage["launch"])
