"""Several devices: the same run as on one, ranks that live and die together, and what is refused at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from essential_sparsity import ranks
from essential_sparsity.callbacks import FeatureProbes
from essential_sparsity.devices import check_devices, num_ranks
from essential_sparsity.pruning import Pruner
from essential_sparsity.pruning.scores import ActivationNorm
from essential_sparsity.runs import Run
from essential_sparsity.training import fit
from tests.training_parts import arguments

ROOT = Path(__file__).resolve().parents[1]
LEFT = [
    ".hydra",
    ".lock",
    "layers.csv",
    "masks.safetensors",
    "metrics.json",
    "model",
    "predictions.parquet",
    "run.json",
]
CLOSE = 2e-6
"""How far weights and losses may lie apart after some twenty steps: sums in another order."""


def several_ranks(folder: Path, *checks: str) -> dict[str, Any]:
    """Do checks of several_ranks.py in one process, and give what each told."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-m", "tests.several_ranks", str(folder), *checks]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in checks}


# --- the same run as on one device ---


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return several_ranks(tmp_path_factory.mktemp("ranks"), "terms", "ddp", "fsdp2", "four", "centre")


def is_the_same_run(told: dict[str, Any], devices: int) -> None:
    assert told["names"] and told["masks"] and told["zeros"] and told["rows"]
    assert told["weights"] < CLOSE and told["loss"] < CLOSE
    assert told["steps"][0] == told["steps"][1] and told["num_images"][0] == told["num_images"][1]
    assert told["devices"] == devices and set(LEFT) <= set(told["left"])
    assert not {"ranks", "checkpoints"} & set(told["left"])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_train_what_one_device_trains(found: dict[str, Any], strategy: str) -> None:
    is_the_same_run(found[strategy]["one"], devices=2)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_killed_rank_ends_the_run_and_the_next_start_goes_on_as_if_nothing_had_happened(
    found: dict[str, Any], strategy: str
) -> None:
    told = found[strategy]["killed"]
    assert told["resumed"] and told["equal"] and told["loss"] == 0.0 and told["rows"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_trace_counts_each_weight_once(found: dict[str, Any], strategy: str) -> None:
    told = found[strategy]["trace"]
    assert told["start"] and told["tokens"] and told["loss"] < CLOSE
    assert told["totals"][0] == told["totals"][1]


def test_shards_hold_the_model_once_over_all_ranks_and_leave_whole_files(found: dict[str, Any]) -> None:
    assert found["fsdp2"]["held"] == 1.0
    assert found["fsdp2"]["snapshot"] < CLOSE


def test_four_ranks_share_a_batch_of_two_rows_and_weights_that_they_do_not_divide(found: dict[str, Any]) -> None:
    is_the_same_run(found["four"], devices=4)


def test_self_distillation_centres_on_the_whole_batch(found: dict[str, Any]) -> None:
    is_the_same_run(found["centre"], devices=2)


def test_ranks_that_differ_say_so_on_every_rank(found: dict[str, Any]) -> None:
    for weights, masks in found["terms"]:
        assert weights.startswith("ranks have different weights 'blocks.1.weight' at step 8")
        assert masks.startswith("ranks chose different masks")


# --- processes ---


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Give a function that launches ranks which do nothing but what they are asked for."""
    monkeypatch.setattr(ranks, "MODULE", "tests.idle_rank")
    monkeypatch.setattr(ranks, "SETTLING", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def launch(*does: str) -> Run:
        ranks.launch({"does": does}, Run(tmp_path), len(does))
        return Run(tmp_path)

    return launch


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def pids(folder: Path, number: int) -> list[int]:
    """Wait for the ranks' first words."""
    files = [folder / f"pid{rank}" for rank in range(number)]
    until = time.monotonic() + 60
    while not all(file.is_file() and file.read_text() for file in files) and time.monotonic() < until:
        time.sleep(0.02)
    return [int(file.read_text()) for file in files]


def test_ranks_that_end_well_leave_nothing(idle: Callable[..., Run]) -> None:
    assert not (idle("", "").path / "ranks").exists()


@pytest.mark.parametrize(
    ("does", "kind", "message"),
    [
        (("sleep", "fail"), "ValueError", "rank 1 of 2: a bad value"),
        (("lose a peer", "die"), "RankEnded", "rank 1 of 2 was killed by SIGKILL: look at its memory"),
        (("sleep", "exit"), "RankEnded", "rank 1 of 2 ended with exit code 7"),
    ],
)
def test_a_rank_that_fails_ends_the_others_and_is_named(
    idle: Callable[..., Run], tmp_path: Path, does: tuple[str, ...], kind: str, message: str
) -> None:
    with pytest.raises(ranks.RankError, match=message) as raised:
        idle(*does)
    assert type(raised.value).__name__ == kind
    assert raised.value.step == (3 if does[1] == "fail" else None)
    told = {"fail": "Traceback of the rank", "exit": "a last word"}.get(does[1], "")
    assert told in "".join(raised.value.__notes__)
    assert not any(map(is_alive, pids(tmp_path, 2)))


PARENT = """
import sys
from pathlib import Path
from essential_sparsity import ranks
from essential_sparsity.runs import Run
ranks.MODULE = "tests.idle_rank"
try:
    ranks.launch({"does": ["sleep", "sleep"]}, Run(Path(sys.argv[1])), 2)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_what_ends_the_starter_ends_its_ranks(tmp_path: Path, signum: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], env=environment)
    started = pids(tmp_path, 2)
    assert all(map(is_alive, started))
    starter.send_signal(signum)
    assert starter.wait(60) == (-9 if signum == signal.SIGKILL else 130)
    until = time.monotonic() + 30
    while any(map(is_alive, started)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(is_alive, started))


# --- refused at once ---


def parts(tmp_path: Path, **trainer: Any) -> dict[str, Any]:
    return arguments("vision", tmp_path / "run") | {"trainer": {"accelerator": "cpu", **trainer}}


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"devices": 2}, r"trainer\.devices=2 needs several processes, which essential-sparsity train starts"),
        ({"devices": 3}, r"data\.batch_size=32 is shared by 3 devices, which do not divide it: give 30 or 33"),
        ({"devices": 0}, r"trainer\.devices=0 names no devices: give 1 or more"),
        ({"devices": "two"}, r"trainer\.devices='two' names no devices"),
        ({"strategy": "fsdp"}, r"trainer\.strategy=fsdp is FSDP1, which renames weights: give fsdp2"),
        ({"strategy": "ddpp"}, r"trainer\.strategy=ddpp is unknown: did you mean 'ddp'"),
        ({"devices": 2, "strategy": "fsdp2", "precision": "16-mixed"}, r"trainer\.precision=16-mixed has no fsdp2"),
        ({"num_nodes": 2}, r"trainer\.num_nodes=2: a run stays on one machine"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    tmp_path: Path, trainer: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(**parts(tmp_path, **trainer))
    assert not (tmp_path / "run/run.json").exists()


def test_what_asks_for_whole_weights_is_refused_under_fsdp2(tmp_path: Path) -> None:
    given = parts(tmp_path, devices=2, strategy="fsdp2")
    with pytest.raises(ValueError, match=r"callbacks\.probes ask a whole model.*give trainer\.strategy=ddp"):
        fit(**given, callbacks=[FeatureProbes()])
    with pytest.raises(ValueError, match="a calibrated pruner reads whole blocks"):
        check_devices(given["trainer"], given["data"], Pruner(ActivationNorm("dense")))


def test_more_cards_than_there_are_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert num_ranks({"devices": "auto"}) == 2 and num_ranks({"devices": [0, 1]}) == 2
    with pytest.raises(ValueError, match=r"trainer\.devices=4, but there are 2 of cuda: give 2"):
        fit(**parts(tmp_path, devices=4, accelerator="gpu"))
