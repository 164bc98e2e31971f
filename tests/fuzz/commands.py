"""Commands in this process without Hydra's start: real apps, an error's real way to the user, in milliseconds.

A root file is composed once; what a test changes is set in the composed configuration.
"""

import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from essential_sparsity.apps import conf
from essential_sparsity.apps.main import main

SMALL = ("backbone=vit_tiny", "data=digits", "trainer.max_steps=1", "trainer.max_epochs=1", "trainer.accelerator=cpu")

ROOTS = {
    "train": SMALL,
    "evaluate": ("backbone=vit_tiny", "data=digits"),
    "prune": ("checkpoint=none", "out=none", "sparsity=0.5"),
    "prune saved": ("checkpoint=none", "out=none", "pruner=saved", "pruner.masks=none"),
    "compare": ("masks=none",),
    "trace": ("checkpoints=none",),
    "report": ("name=none",),
}
"""What is composed once for each kind of command."""


@cache
def _composed(kind: str) -> DictConfig:
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        return compose(kind.split()[0], overrides=list(ROOTS[kind]), return_hydra_config=True)


class Tried:
    """Every distinct bad input that was tried, by kind, and the check that each is told in one line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder
        self.inputs: dict[str, set[Any]] = {}

    def refused(self, name: str, key: Any, kind: str, settings: dict[str, Any]) -> str:
        """Run a command with settings on top of its root; check how it ends; give its error line."""

        def start(config_name: str, job: Callable[[DictConfig], Any]) -> None:
            composed = deepcopy(_composed(kind))
            HydraConfig.instance().set_config(composed)
            with open_dict(composed):
                composed.pop("hydra")
            OmegaConf.set_struct(composed, True)
            for dotted, value in {**settings, "paths.outputs": str(self.folder / "outputs")}.items():
                OmegaConf.update(composed, dotted, value)
            job(composed)

        self.monkeypatch.setattr(conf, "start", start)
        return self._line(name, key, [kind.split()[0]])

    def typed(self, name: str, words: Sequence[str]) -> str:
        """Run a command as it is typed, by Hydra; check how it ends; give its error line."""
        self.monkeypatch.undo()
        self.monkeypatch.chdir(self.folder)
        return self._line(name, tuple(words), [*words, f"paths.outputs={self.folder / 'outputs'}"])

    def _line(self, name: str, key: Any, words: list[str]) -> str:
        """Check exit code, one line, no traceback, nothing half-written, no run that counts as finished."""
        self.monkeypatch.setattr(sys, "argv", ["essential-sparsity", *words])
        before = set(self.folder.rglob("metrics.json"))
        code = main(words)
        printed = self.capsys.readouterr()
        lines = printed.err.strip().splitlines()
        assert code not in (0, None), f"{name}: {key!r} was taken\n{printed.out[-2000:]}"
        assert len(lines) == 1 and lines[0].startswith("essential-sparsity: error: "), (
            f"{key!r}:\n{printed.err[-3000:]}"
        )
        assert len(lines[0]) < 1500, lines[0]
        assert not list(self.folder.rglob(".*.part")), f"{key!r} left a file half-written"
        assert set(self.folder.rglob("metrics.json")) == before
        self.inputs.setdefault(name, set()).add(key)
        return lines[0]

    @property
    def total(self) -> int:
        """How many distinct inputs were tried."""
        return sum(map(len, self.inputs.values()))

    def table(self) -> str:
        """Give kind and number, a line each."""
        rows = [f"{len(inputs):5}  {name}" for name, inputs in sorted(self.inputs.items())]
        return "\n".join([*rows, f"{self.total:5}  in all"])
