"""A fine-tuning point against a bare PyTorch loop over the same batches: all-MiniLM on 2,000 rows of SST-2.

One epoch in fp32. The bare loop does what has to be done and nothing else: forward, backward, AdamW (fused, as ours),
schedule, weights times masks. It is given its batches as a list. Both start from the same weights, masks, head and
dropout, so that they must end in the same weights: a figure checks it. A second peer pads every row to 128 tokens.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as functional
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from essential_sparsity.pruning import Masks, prunable_weights
from essential_sparsity.seeds import derive
from essential_sparsity.tasks.optimization import linear, make_optimizer
from essential_sparsity.training import fit
from tests.bench import machine
from tests.bench.figure import Figure
from tests.bench.measure import fresh, in_turn
from tests.bench.pruning import OMP
from tests.bench.sst2 import ADAMW, SKIPPED, TASK, Inputs, inputs

SPARSITY = "0.5"
PADDED = 128
PADDED_STEPS = 16
"""Steps that the padded peer is timed for; its time is multiplied up to the whole epoch."""


class Stopwatch(Callback):
    """Time from the first batch to the last, and hold on to the module."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self.module, self.started = pl_module, time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.started


def run(quick: bool = False) -> Iterator[Figure]:
    """Time both in turn; then the padded peer, and the bare loop with spinning threads, in fresh processes."""
    rows, rounds = (128, 2) if quick else (2000, 5)
    with tempfile.TemporaryDirectory() as folder:
        found = inputs(f"{folder}/cache")
        if found is None:
            yield Figure("a fine-tuning point", skipped=SKIPPED)
            return
        pair = _Pair(found, Path(folder), rows)
        pair.warm_up()
        whole = in_turn(pair.ours, pair.bare, rounds)
        yield from _figures(pair, whole, quick)
        yield from _other_peers(found, rows, median(pair.our_training), quick)


def _figures(pair: "_Pair", whole: tuple[float, float, float], quick: bool) -> Iterator[Figure]:
    rate, rounds = machine.rates(quick).fp32, len(pair.our_training)
    ratio = median(o / b for o, b in zip(pair.our_training, pair.bare_training, strict=True))
    size = f"{pair.rows:,} rows, {len(pair.batches)} steps"
    yield Figure(
        f"training, {size}; bare loop", median(pair.our_training), median(pair.bare_training),
        ratio_is="of peer", paired_ratio=ratio, goal="≤ 1.03", note=f"medians of {rounds} in turn",
        limit=3 * pair.flops / rate, limit_is="for its matrix products",
    )  # fmt: skip
    mine, theirs, ratio = whole
    yield Figure(
        "whole point (load, mask, train, evaluate, write); bare", mine, theirs,
        ratio_is="of peer", paired_ratio=ratio, goal="≤ 1.03", note="the bare one writes nothing",
    )  # fmt: skip
    yield Figure("largest difference of the trained weights", pair.difference, unit="", goal="≤ 1e-5", check=True)


def _other_peers(found: Inputs, rows: int, ours: float, quick: bool) -> Iterator[Figure]:
    steps = 2 if quick else PADDED_STEPS
    (padded, num_steps), _ = fresh(bare_steps, **asdict(found), rows=rows, steps=steps, padded=True)
    yield Figure(
        f"training; every row padded to {PADDED} tokens", ours, padded / steps * num_steps, goal="≥ 3",
        note=f"the peer timed for {steps} steps, multiplied up to {num_steps}",
    )  # fmt: skip
    seconds = {}
    for policy in ("PASSIVE", "ACTIVE"):
        (taken, _), _ = fresh(
            bare_steps, {"OMP_WAIT_POLICY": policy}, **asdict(found), rows=rows, steps=2 * steps, padded=False
        )
        seconds[policy] = taken
    what = f"bare loop, {2 * steps} steps, OMP_WAIT_POLICY=PASSIVE; ACTIVE"
    yield Figure(what, seconds["PASSIVE"], seconds["ACTIVE"], ratio_is="of peer")


class _Pair:
    """Ours and the bare loop on one setting, with what each round found."""

    def __init__(self, found: Inputs, folder: Path, rows: int) -> None:
        self.found, self.folder, self.rows = found, folder, rows
        self.runs = count()
        self.batches = batches_of(found, rows)
        self.our_training: list[float] = []
        self.bare_training: list[float] = []
        self.difference = 0.0
        self.flops = 0
        self._weights: dict[str, Tensor] = {}

    def warm_up(self) -> None:
        """Do both once, for imports, caches and threads, and forget their times."""
        self.ours()
        self.bare()
        self.our_training, self.bare_training = [], []

    def ours(self) -> float:
        """Run one point by `fit`: seconds in all; those of training are remembered."""
        watch, started = Stopwatch(), time.perf_counter()
        fit(
            self.found.backbone(), self.found.glue(self.rows), TASK, run=self.folder / f"run{next(self.runs)}",
            pruner=OMP, sparsity=SPARSITY, callbacks=[watch], trainer={"max_epochs": 1},
        )  # fmt: skip
        taken = time.perf_counter() - started
        self.our_training.append(watch.seconds)
        self._compare(watch.module)
        return taken

    def bare(self) -> float:
        """Do the same point by hand: seconds in all; those of training are remembered."""
        started = time.perf_counter()
        glue = self.found.glue(self.rows)
        model, masks = prepared(self.found)
        self.bare_training.append(bare_loop(model, masks, self.batches))
        glue.prepare(self.found.backbone().preprocessing())
        right = total = 0
        with torch.inference_mode():
            model.eval()
            for batch in glue.evaluation_dataloaders()["validation"]:
                right += int((_scores(model, batch).argmax(-1) == batch["labels"]).sum())
                total += len(batch["labels"])
        taken = time.perf_counter() - started
        self.flops = 2 * masks.num_prunable * sum(batch["input_ids"].numel() for batch in self.batches)
        self._compare(model)
        return taken

    def _compare(self, module: nn.Module) -> None:
        """Keep the largest difference between the prunable weights of two trainings that follow each other."""
        weights = {name: weight.detach() for name, weight in prunable_weights(module).items()}
        for name, weight in self._weights.items():
            self.difference = max(self.difference, float((weight - weights[name]).abs().max()))
        self._weights = weights


# --- the bare loop ----------------------------------------------------------------------------------------------------


def batches_of(found: Inputs, rows: int) -> list[dict[str, Tensor]]:
    """Give the very batches that `fit` trains on with seed 0."""
    glue = found.glue(rows)
    glue.prepare(found.backbone().preprocessing())
    glue.seed(derive(0, "order"))
    return list(glue.train_dataloader())


def prepared(found: Inputs) -> tuple[nn.Module, Masks]:
    """Load the model with the head that `fit` draws for seed 0, and mask it."""
    model = found.backbone().build(num_labels=2, seed=derive(0, "head"))
    weights = prunable_weights(model)
    masks = OMP(weights, sparsity=SPARSITY)
    masks.apply_(weights)
    return model, masks


def bare_loop(model: nn.Module, masks: Masks, batches: list[dict[str, Tensor]], num_steps: int | None = None) -> float:
    """Train over the batches and multiply weights by masks after each step; gives the seconds of the loop."""
    optimizer = make_optimizer(model, ADAMW)
    schedule = linear(optimizer, num_steps or len(batches))
    held = [(weight, masks[name].float()) for name, weight in prunable_weights(model).items()]
    model.train()
    started = time.perf_counter()
    for index, batch in enumerate(batches):
        torch.manual_seed(derive(0, "step", 0, 0, index))  # the dropout of `fit`
        optimizer.zero_grad()
        functional.cross_entropy(_scores(model, batch), batch["labels"]).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for weight, keep in held:
                weight.mul_(keep)
    return time.perf_counter() - started


def bare_steps(model: str, data: str, cache: str, rows: int, steps: int, padded: bool) -> tuple[float, int]:
    """Time some steps of the bare loop in this process, one to warm up: (seconds, steps of the whole epoch)."""
    found = Inputs(model, data, cache)
    batches = batches_of(found, rows)
    chosen: list[Any] = [_padded(batch) if padded else batch for batch in batches[:steps]]
    network, masks = prepared(found)
    bare_loop(network, masks, chosen[:1], len(batches))
    return bare_loop(network, masks, chosen, len(batches)), len(batches)


def _scores(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def _padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pad ids and attention mask to 128 tokens (pad id 0)."""
    missing = PADDED - batch["input_ids"].shape[1]
    return {k: functional.pad(v, (0, missing)) if v.ndim == 2 else v for k, v in batch.items()}
