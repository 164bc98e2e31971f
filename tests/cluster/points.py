"""The sweep that clusters are given: twelve points of a tiny ViT on digits, steps as slow as a fault needs them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

NUM_STEPS = 60

SETTINGS = (
    f"backbone=vit_tiny data=digits data.num_workers=0 trainer.accelerator=cpu trainer.max_epochs=10 "
    f"trainer.max_steps={NUM_STEPS} optimizer.lr=2e-3 name=cluster +callbacks.paced._target_=paced.Paced"
).split()


def sweep(*axes: str) -> list[str]:
    """Give the command for some axes, first: run folders are named by what comes first."""
    return ["train", "-m", *axes, *SETTINGS]


OFTEN = "trainer.checkpoint_steps=5"
"""For workers that are killed without a warning."""

SWEEP = sweep("sparsity=0.0,0.3,0.6,0.9", "seed=0,1,2")

SLOW = "sparsity=0.9"
"""What the names of the slow points' run folders hold."""

PACED = '''
"""A callback that makes steps last, and writes down which process did them."""

import os
import time
from pathlib import Path

from pytorch_lightning import Callback


class Paced(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        run = Path(trainer.default_root_dir).name
        pace = os.environ.get("PACE", "0,0").split(",")
        time.sleep(float(pace["sparsity=0.9" in run]))
        if os.environ.get("DEADLY", "no run") in run and trainer.global_step == 5:
            os.kill(os.getpid(), 9)
        if "PACED" in os.environ:
            with open(os.environ["PACED"], "a") as file:
                file.write(f"{run} {os.getpid()} {trainer.global_step}\\n")
'''


@dataclass(frozen=True)
class Steps:
    """What the processes of a sweep wrote down: by run folder's name, the steps of each process, in order."""

    file: Path

    def read(self) -> dict[str, dict[int, list[int]]]:
        """Read them as run → process → steps."""
        found: dict[str, dict[int, list[int]]] = {}
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            run, process, step = line.rsplit(" ", 2)
            found.setdefault(run, {}).setdefault(int(process), []).append(int(step))
        return found

    def processes(self) -> set[int]:
        """Give the processes that have begun to train."""
        return {process for of_run in self.read().values() for process in of_run}


def settings(folder: Path, *, pace: tuple[float, float] = (0, 0)) -> dict[str, str]:
    """Prepare a working folder, and give the environment of its commands; `pace`: seconds of usual and slow steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "paced.py").write_text(PACED)
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": ":".join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        "PACE": f"{pace[0]},{pace[1]}",
        "PACED": str(folder / "steps.txt"),
    }


def start(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], *, inside: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start a command in a folder (`inside`: what begins it elsewhere); its output goes to `output.txt` there."""
    command = [*inside, sys.executable, "-W", "ignore", "-m", "essential_sparsity.apps.main", *words]
    with (folder / "output.txt").open("a") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            text=True,
        )


def run(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], *, seconds: float = 3600
) -> tuple[int, str]:
    """Run a command in a folder; give its exit code and what it printed."""
    before = len(told(folder))
    code = start(words, folder, environment).wait(timeout=seconds)
    return code, told(folder)[before:]


def told(folder: Path) -> str:
    """Give what commands printed in a folder."""
    file = folder / "output.txt"
    return file.read_text() if file.exists() else ""
