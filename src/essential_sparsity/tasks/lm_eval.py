"""Any task of lm-eval (EleutherAI's evaluation harness), run by lm-eval itself on the pruned model."""

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class LmEval(lightning.LightningModule):
    """Hand the model to lm-eval's own wrapper and take its scores row by row; nothing is trained.

    `tasks` are names of lm-eval's tasks or groups, of `include_path` too (a folder of task files). `num_fewshot` and
    `limit` (rows of each task) are lm-eval's. `metric` is what counts, the same for all tasks: a number per row whose
    mean lm-eval reports (None: the first such metric of each task). `num_labels`, `optimizer` and `schedule` have no
    meaning here.
    """

    head = "causal_lm"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: nn.Module,
        *,
        tasks: Sequence[str],
        num_labels: int = 0,
        optimizer: Any = None,
        schedule: Any = None,
        num_fewshot: int | None = None,
        limit: int | None = None,
        metric: str | None = None,
        batch_size: int | str = "auto",
        include_path: str | None = None,
    ) -> None:
        super().__init__()
        self.model, self.tasks, self.metric = model, list(tasks), metric
        self.num_fewshot, self.limit, self.batch_size, self.include_path = num_fewshot, limit, batch_size, include_path
        self.tokenizer: Any = None
        self._found: dict[str, float] = {}

    def bind(self, preprocessing: Any) -> None:
        """Take the backbone's tokenizer; ValueError for an encoder's, which ends texts and leaves nothing to follow."""
        self.tokenizer = preprocessing.tokenizer
        if self.tokenizer("a")["input_ids"][-1] in self.tokenizer.all_special_ids:
            raise ValueError(
                "the backbone's tokenizer ends each text, so nothing can follow: choose a decoder's, as OPT"
            )

    @cached_property
    def _known_tasks(self) -> Any:
        return module("tasks").TaskManager(include_path=self.include_path)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Batch:
        """Run lm-eval; give the columns row, score and task (a number, in the order of the names), each [rows]."""
        wrapper = module("models.huggingface").HFLM
        with _quiet():
            results = module("evaluator").simple_evaluate(
                model=wrapper(pretrained=self.model, tokenizer=self.tokenizer, batch_size=self.batch_size),
                tasks=self.tasks,
                task_manager=self._known_tasks,
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                bootstrap_iters=0,
            )
        assert results is not None
        self._found = numbers(results["results"])
        scores = row_scores(results["samples"], results["higher_is_better"], results["results"], self.metric)
        task = torch.repeat_interleave(
            torch.arange(len(scores)), torch.tensor([len(found) for found in scores.values()])
        )
        score = torch.from_numpy(np.concatenate(list(scores.values())))
        return {"row": torch.arange(len(score)), "score": score, "task": task}

    def details(self, predictions: Any) -> dict[str, float]:
        """Give every number that lm-eval reports, by task and metric."""
        return self._found

    def configure_optimizers(self) -> Any:
        """Raise ValueError: nothing is trained."""
        raise ValueError("task=lm_eval trains nothing: use essential-sparsity evaluate")


def module(name: str) -> Any:
    """Import a part of lm-eval, which is an extra."""
    return importlib.import_module(f"lm_eval.{name}")


def numbers(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Give lm-eval's results as lm_eval/<task>/<metric>; a metric is spelt with its filter, as "acc,none"."""
    return {
        f"lm_eval/{task}/{name}": float(value)
        for task, found in results.items()
        for name, value in found.items()
        if "," in name and "stderr" not in name and isinstance(value, (int, float))
    }


def row_scores(
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
    higher_is_better: Mapping[str, Mapping[str, Any]],
    results: Mapping[str, Mapping[str, Any]],
    metric: str | None,
) -> dict[str, np.ndarray]:
    """Give each row's score by task, of the metric asked for; a row counts once, by its first filter.

    Raises ValueError where a task has no such metric that is a number per row, better when higher, and reported as the
    mean: only of those can rows be resampled.
    """
    found: dict[str, np.ndarray] = {}
    for task in sorted(samples):
        first = samples[task][0]["filter"]
        rows = [row for row in samples[task] if row["filter"] == first]
        able = [
            name
            for name in rows[0]["metrics"]
            if higher_is_better.get(task, {}).get(name)
            and all(isinstance(row[name], (bool, int, float, np.number)) for row in rows)
            and np.isclose(np.mean([float(row[name]) for row in rows]), results[task].get(f"{name},{first}", np.nan))
        ]
        chosen = metric if metric is not None else next(iter(able), "")
        if chosen not in able:
            raise ValueError(
                f"task.metric={metric} is no mean over the rows of lm-eval's {task}: "
                + (f"choose one of {', '.join(able)}" if able else "it has none, choose another task")
            )
        found[task] = np.array([float(row[chosen]) for row in rows], np.float32)
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's progress and hints to itself."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
