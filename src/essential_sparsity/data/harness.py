"""The rows of lm-eval's own tasks: lm-eval reads them, these data only check that it can."""

import importlib
import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch

from essential_sparsity.data.batches import Batch
from essential_sparsity.data.zero_shot import ZeroShotData
from essential_sparsity.inputs import suggest

ROWS = "lm_eval"


class HarnessRows(ZeroShotData):
    """Stand-ins for the rows of lm-eval's `tasks`, which lm-eval downloads or reads itself."""

    metric = "score"

    def __init__(self, tasks: Sequence[str], *, include_path: str | None = None) -> None:
        super().__init__()
        self.tasks, self.include_path = list(tasks or ()), include_path

    def check(self) -> None:
        """Check that lm-eval is installed and has the tasks."""
        require_harness()
        if not self.tasks:
            raise ValueError("task.tasks=[] names no task of lm-eval: give some, as task.tasks=[hellaswag]")
        known = importlib.import_module("lm_eval.tasks").TaskManager(include_path=self.include_path)
        for task in self.tasks:
            if not known.match_tasks([task]):
                near = suggest(task, known.all_tasks)
                remedy = near if near.startswith(": did") else ": lm-eval ls tasks names them all"
                raise ValueError(f"task.tasks names {task!r}, which lm-eval has not{remedy}")

    def inputs(self) -> dict[str, str]:
        """Give lm-eval's version, which decides prompts and rows."""
        require_harness()
        return {"lm-eval": version("lm-eval")}

    def prepare(self, preprocessing: Any) -> None:
        """Nothing is prepared: lm-eval reads its own rows."""
        if not hasattr(preprocessing, "tokenizer"):
            raise ValueError("lm-eval's tasks are text, but the backbone reads images: choose a decoder, as opt_125m")

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Raise ValueError: lm-eval counts its rows."""
        raise ValueError("lm-eval counts its rows when it runs")

    def evaluation_dataloaders(self) -> dict[str, Any]:
        """Give one batch, upon which the task runs lm-eval."""
        batch: Batch = {"row": torch.zeros(1, dtype=torch.int64)}
        return {ROWS: [batch]}


def require_harness() -> None:
    """Raise ValueError, with the remedy, where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("task=lm_eval needs lm-eval, an extra: pip install 'essential-sparsity[llm]'")
