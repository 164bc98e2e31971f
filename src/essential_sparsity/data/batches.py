"""Batches whose order is a pure function of (seed, epoch), bucketed by length, resumable in mid-epoch to the bit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch.utils.data import DataLoader, Dataset

from essential_sparsity.seeds import derive

POOL_BATCHES = 128
"""Rows are sorted by length in shuffled pools of this many batches: padding stays under 5 %, batches stay random."""

Batch = dict[str, torch.Tensor]
MakeBatch = Callable[[np.ndarray, int], Batch]
Complete = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
"""Makes the columns of predictions.parquet of a task's, where scoring needs what no tensor holds (texts)."""


def random_permutation(num: int, seed: int) -> np.ndarray:
    """Permute 0 … num - 1; the same for ever (numpy's frozen RandomState), on every machine."""
    return np.random.RandomState(seed % 2**32).permutation(num)


class BatchOrder:
    """Which rows form which batch in which epoch; `seed=None` keeps one fixed order, shortest rows first.

    `lengths` (one number per row, or None) buckets rows of like length. Under torch.distributed each rank takes its
    part of every batch of the training order: `batch_size` is the run's, and a step sees the same rows whatever the
    number of ranks. Fixed orders are not split.
    """

    def __init__(self, num_rows: int, batch_size: int, *, seed: int | None, lengths: np.ndarray | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not a positive number: give 1 or more")
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self.epoch = 0
        self.position = 0  # batches of this epoch handed out so far
        self.start = 0  # the batch that the next iteration begins with: above 0 only after a resume

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; a resumed place in the same epoch is kept (Lightning calls this)."""
        if epoch != self.epoch:
            self.epoch, self.position, self.start = epoch, 0, 0

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Give all batches of an epoch, each an array of row positions; this rank's share of them."""
        if self.seed is None:
            rows = np.arange(self.num_rows) if self.lengths is None else np.argsort(self.lengths, kind="stable")
            return self._cut(rows)
        rows = random_permutation(self.num_rows, derive(self.seed, "rows", epoch))
        if self.lengths is not None:
            pool = POOL_BATCHES * self.batch_size
            pools = [rows[start : start + pool] for start in range(0, self.num_rows, pool)]
            rows = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in pools])
        batches = self._cut(rows)
        order = random_permutation(len(batches), derive(self.seed, "batches", epoch))
        rank, world = _rank_and_world()
        return [part_of(batches[index], rank, world) for index in order]

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]


def part_of(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Give a rank's rows of a batch: every `world`-th, so that long rows are shared out, too.

    A rank that is left without any borrows the first row, told as −1 − row: it takes part and counts for nothing.
    """
    if world == 1:
        return rows
    own = rows[rank::world]
    return own if len(own) else -1 - rows[:1]


class BatchLoader:
    """Iterate over batches of an order; `state_dict` counts the batches *handed out*, whatever workers prefetched.

    At an epoch's end the state is (epoch + 1, 0), so plain loops and Lightning go on with the next epoch's order.
    Not a torch DataLoader, on purpose: nothing replaces its sampler, and starting it draws nothing from the global
    random stream.
    """

    batch_sampler = None  # Lightning looks for one

    def __init__(
        self, make_batch: MakeBatch, order: BatchOrder, *, num_workers: int = 0, complete: Complete | None = None
    ) -> None:
        self.make_batch, self.sampler, self.num_workers = make_batch, order, num_workers
        self.complete = complete

    @property
    def batch_size(self) -> int:
        """Rows of a full batch."""
        return self.sampler.batch_size

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Give the batches of the sampler's epoch, from its start on; both are read at the first `next`."""
        order = self.sampler
        epoch, order.position = order.epoch, order.start
        for batch in self._make(order.batches(epoch)[order.start :], epoch):
            order.start = 0
            order.position += 1
            if order.position == len(order):
                order.epoch, order.position = epoch + 1, 0
            yield batch

    def _make(self, batches: list[np.ndarray], epoch: int) -> Iterator[Batch]:
        dataset = _EpochBatches(batches, self.make_batch, epoch)
        pin = torch.cuda.is_available()
        if self.num_workers:
            generator = torch.Generator().manual_seed(0)  # workers draw nothing; this spares the global stream
            yield from DataLoader(
                dataset, batch_size=None, num_workers=self.num_workers, pin_memory=pin, generator=generator
            )
            return
        for index in range(len(dataset)):
            batch = dataset[index]
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pin else batch

    def state_dict(self) -> dict[str, Any]:
        """Give the place in the order and what the order depends on; plain values."""
        return {"epoch": self.sampler.epoch, "position": self.sampler.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; an order of other rows, batch size, seed or ranks is refused."""
        differing = [name for name, value in self._identity().items() if state.get(name) != value]
        if differing == ["world"]:
            raise ValueError(
                f"the checkpoint was written by {state.get('world')} ranks, this run has {self._identity()['world']}: "
                f"resume with trainer.devices={state.get('world')}, or remove checkpoints/ to start afresh"
            )
        if differing:
            name = differing[0]
            raise ValueError(
                f"the checkpoint's batch order has {name}={state.get(name)}, this run's {self._identity()[name]}: "
                "resume with the same data and batch size, or start afresh"
            )
        self.sampler.epoch = state["epoch"]
        self.sampler.position = self.sampler.start = state["position"]

    def _identity(self) -> dict[str, Any]:
        order = self.sampler
        return {
            "num_rows": order.num_rows,
            "batch_size": order.batch_size,
            "seed": order.seed,
            "world": _rank_and_world()[1],
        }


class _EpochBatches(Dataset[Batch]):
    """The batches of one epoch, made on demand; a borrowed row is marked by row −1."""

    def __init__(self, batches: Sequence[np.ndarray], make_batch: MakeBatch, epoch: int) -> None:
        self.batches, self.make_batch, self.epoch = batches, make_batch, epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        rows = self.batches[index]
        if rows[0] >= 0:
            return self.make_batch(rows, self.epoch)
        batch = self.make_batch(-1 - rows, self.epoch)
        return batch | {"row": torch.full_like(batch["row"], -1)}


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
