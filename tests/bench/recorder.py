"""What a record of SparsityRecorder costs at a step of BERT-base, and what it takes on the disk.

A record is timed whole: counting, encoding, writing and fsync, waited for. In training the writing overlaps with the
next steps. The peer is what one would do without a recorder: save a checkpoint (weights and AdamW's state, as Lightning
does) and read the weights back.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from essential_sparsity.callbacks import SparsityRecorder
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.pruning.moments import measure
from essential_sparsity.tasks.optimization import make_optimizer
from tests.bench import callback, machine
from tests.bench.figure import Figure
from tests.bench.measure import in_turn, seconds

EVERY = 10
"""Steps between two records on a card."""


def run(quick: bool = False) -> Iterator[Figure]:
    """Time records alone and beside a step and a checkpoint, then, where there is a card, in a training on it."""
    module, batch = callback._module(quick), callback._batch(quick)
    optimizer = make_optimizer(module.model, lambda groups: torch.optim.AdamW(groups, lr=2e-5, fused=True))
    step = lambda: seconds(lambda: callback._step(module, batch, optimizer, None, None))  # noqa: E731
    step()  # makes the optimizer's state
    num_bytes = sum(weight.nbytes for weight in prunable_weights(module).values())
    limit = {"limit": num_bytes / machine.rates(quick).read, "limit_is": "to read the weights once"}
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(module, optimizer, Path(folder))
        record = median(seconds(recording.record) for _ in range(3 if quick else 9))
        plain = median(step() for _ in range(2 if quick else 3))
        yield Figure("one record; a step of BERT-base, 32 × 128, fp32", record, plain, ratio_is="of peer",
                     goal="≤ 0.05", **limit)  # fmt: skip
        files = [*Path(folder, "trace").glob(f"*={recording.step:08d}.parquet")]
        size = sum(file.stat().st_size for file in files)
        yield Figure("one record of BERT-base on the disk", size / 1024, unit="KiB", goal="≤ 90")
        checkpoint = Path(folder, "checkpoint.ckpt")
        saved = median(seconds(lambda: _save_and_read(module, optimizer, checkpoint)) for _ in range(2 if quick else 3))
        yield Figure("one record; saving a checkpoint and reading its weights", record, saved, goal="≥ 50")
        yield Figure("bytes of a record; of a checkpoint", size, checkpoint.stat().st_size, unit="bytes")
        recording.end()
    yield from on_a_card(quick)


class Recording:
    """A recorder in a training that stands still: a real trainer would time Lightning's loop as well."""

    def __init__(self, module: Any, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        self.module, self.recorder = module, SparsityRecorder(1, folder=folder)
        self.trainer: Any = SimpleNamespace(
            default_root_dir=folder, is_global_zero=True, world_size=1, accumulate_grad_batches=1, global_step=0,
            optimizers=[optimizer],
        )  # fmt: skip
        self.recorder.on_train_start(self.trainer, module)

    @property
    def step(self) -> int:
        """The last record's step."""
        return self.trainer.global_step

    def begin(self) -> None:
        """Start a record after one more step, as training does: nothing waits for the disk."""
        self.trainer.global_step += 1
        self.recorder.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def record(self) -> None:
        """Make a record and wait until it is on the disk."""
        self.begin()
        self.recorder.state_dict()

    def end(self) -> None:
        """End the writer."""
        self.recorder.state_dict()
        self.recorder.teardown(self.trainer, self.module, "fit")


def _save_and_read(module: Any, optimizer: torch.optim.Optimizer, path: Path) -> None:
    content = {"state_dict": module.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    with path.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    weights = torch.load(path, weights_only=True)["state_dict"]
    sum(float(weight.view(-1)[0]) for weight in weights.values())


# --- on a card --------------------------------------------------------------------------------------------------------


def on_a_card(quick: bool) -> Iterator[Figure]:
    """Compare ten steps with and without a record of BERT-base in bf16, 256 rows of 128 tokens."""
    if not torch.cuda.is_available():
        yield Figure("a record every 10 steps on a card", goal="≤ 1.005", skipped="no CUDA card: skipped")
        return
    module = callback._module(quick).cuda()
    rows = {key: value.repeat(8, *[1] * (value.ndim - 1)).cuda() for key, value in callback._batch(quick).items()}
    optimizer = make_optimizer(module.model, lambda groups: torch.optim.AdamW(groups, lr=2e-5, fused=True))
    weights = prunable_weights(module)
    here, there = measure(weights), measure({name: weight.detach().cpu() for name, weight in weights.items()})
    same = np.array_equal(here.counts, there.counts) and np.allclose(here.sums, there.sums, rtol=1e-4, atol=1e-3)
    yield Figure("card and host measure the same", float(same), unit="", goal="= 1", check=True)

    def steps() -> None:
        for _ in range(EVERY):
            with torch.autocast("cuda", torch.bfloat16):
                callback._step(module, rows, optimizer, None, None)

    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(module, optimizer, Path(folder))

        def timed(recorded: bool) -> float:
            def work() -> None:
                if recorded:
                    recording.begin()
                steps()
                torch.cuda.synchronize()

            torch.cuda.synchronize()
            return seconds(work)

        timed(True)
        timed(False)
        ours, plain, pair = in_turn(lambda: timed(True), lambda: timed(False), 3 if quick else 15)
        yield Figure("10 steps with one record; without, BERT-base bf16, 256 × 128", ours, plain, ratio_is="of peer",
                     paired_ratio=pair, goal="≤ 1.005")  # fmt: skip
        recording.end()
