"""Batch order is a pure function of (seed, epoch); resume in mid-epoch is invisible, under Lightning too."""

import itertools
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from essential_sparsity.data.batches import BatchLoader, BatchOrder


def rows_of(batches: list[np.ndarray]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def loader(num_rows: int = 10, batch_size: int = 3, *, seed: int | None = 0, num_workers: int = 0) -> BatchLoader:
    order = BatchOrder(num_rows, batch_size, seed=seed)
    return BatchLoader(lambda rows, epoch: {"row": torch.tensor(rows)}, order, num_workers=num_workers)


def handed_out(batches: Any) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def test_every_row_comes_once_per_epoch() -> None:
    order = BatchOrder(10, 3, seed=1)
    for epoch in range(3):
        batches = order.batches(epoch)
        assert sorted(itertools.chain(*rows_of(batches))) == list(range(10))
        assert len(batches) == len(order) == 4


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, again = BatchOrder(50, 4, seed=3), BatchOrder(50, 4, seed=3)
    assert rows_of(first.batches(2)) == rows_of(again.batches(2))
    assert rows_of(first.batches(2)) != rows_of(first.batches(1))
    assert rows_of(first.batches(2)) != rows_of(BatchOrder(50, 4, seed=4).batches(2))


def test_order_is_frozen_for_ever() -> None:
    assert rows_of(BatchOrder(6, 2, seed=0).batches(0)) == FROZEN


FROZEN = [[3, 4], [5, 2], [1, 0]]


def test_bucketed_batches_hold_rows_of_like_length_and_stay_shuffled() -> None:
    lengths = np.random.RandomState(0).lognormal(3, 0.6, 4000).astype(int) + 3
    batches = BatchOrder(4000, 32, seed=0, lengths=lengths).batches(0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert 1 - lengths.sum() / padded < 0.05
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3  # long batches do not follow one another
    assert sorted(np.concatenate(batches)) == list(range(4000))


def test_fixed_order_goes_from_short_to_long() -> None:
    batches = BatchOrder(4, 2, seed=None, lengths=np.array([9, 1, 5, 3])).batches(7)
    assert rows_of(batches) == [[1, 3], [2, 0]]


def test_epochs_follow_one_another_in_plain_loops() -> None:
    batches = loader()
    assert handed_out(batches) == rows_of(batches.sampler.batches(0))
    assert handed_out(batches) == rows_of(batches.sampler.batches(1))


def test_breaking_off_and_iterating_again_starts_the_epoch_again() -> None:
    batches = loader()
    first = next(iter(batches))["row"].tolist()
    assert handed_out(batches)[0] == first


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])
def test_resume_goes_on_with_the_next_batch(stop: int, num_workers: int) -> None:
    whole = handed_out(loader()) + rows_of(loader().sampler.batches(1)) + rows_of(loader().sampler.batches(2))
    before = loader(num_workers=num_workers)
    stream = itertools.chain(before, before, before)
    for _ in range(stop):
        next(stream)
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(before.state_dict())
    rest = list(itertools.islice(itertools.chain(resumed, resumed), 3))
    assert handed_out(rest) == whole[stop : stop + 3]


def test_state_counts_batches_handed_out_not_those_prefetched() -> None:
    batches = loader(num_workers=2)
    next(iter(batches))
    assert batches.state_dict()["position"] == 1


def test_foreign_state_is_refused() -> None:
    state = loader(batch_size=3).state_dict()
    with pytest.raises(ValueError, match="batch_size=3, this run's 5"):
        loader(batch_size=5).load_state_dict(state)


def test_iterating_leaves_the_global_random_stream_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    handed_out(loader())
    handed_out(loader(num_workers=2))
    assert torch.equal(before, torch.random.get_rng_state())


def of_ranks(monkeypatch: pytest.MonkeyPatch, world: int, *numbers: int) -> list[Any]:
    """Give what each rank's loader hands out in an epoch."""
    handed = []
    for rank in range(world):
        monkeypatch.setattr("essential_sparsity.data.batches._rank_and_world", lambda rank=rank: (rank, world))
        order = BatchOrder(*numbers, seed=0)
        handed.append(handed_out(BatchLoader(lambda rows, epoch: {"row": torch.tensor(rows)}, order)))
    return handed


def test_ranks_share_every_batch_and_lose_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(BatchOrder(22, 4, seed=0).batches(0))
    shares = of_ranks(monkeypatch, 2, 22, 4)
    assert [len(share) for share in shares] == [6, 6]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]
    assert all(len(part) == 2 for share in shares for part in share if len(part) != 1)


def test_a_rank_without_rows_borrows_one_that_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rows_of(BatchOrder(9, 4, seed=0).batches(0))
    shares = of_ranks(monkeypatch, 4, 9, 4)
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert sorted(row for part in parts for row in part if row >= 0) == sorted(batch)
        assert parts.count([-1]) == 4 - min(4, len(batch))


def test_a_checkpoint_of_other_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    state = loader().state_dict()
    monkeypatch.setattr("essential_sparsity.data.batches._rank_and_world", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"written by 1 ranks, this run has 2: resume with trainer\.devices=1"):
        loader().load_state_dict(state)


def test_a_batch_needs_rows() -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        BatchOrder(3, 0, seed=0)


# --- under Lightning --------------------------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """Learns nothing; writes down which rows it was given, and may be killed."""

    def __init__(self, die_after: int | None = None) -> None:
        super().__init__()
        self.weight, self.seen, self.die_after = torch.nn.Parameter(torch.zeros(1)), [], die_after

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.die_after is not None and len(self.seen) == self.die_after:
            raise RuntimeError("killed")
        self.seen.append(batch["row"].tolist())
        return (self.weight * batch["row"].float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1e-3)


def fit(module: Recorder, folder: Any, *, resume: bool, **arguments: Any) -> None:
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        log_every_n_steps=1,
        callbacks=[
            ModelCheckpoint(folder / "every", filename="last", every_n_train_steps=1, enable_version_counter=False)
        ],
        **arguments,
    )
    path = folder / "every" / "last.ckpt" if resume else None
    trainer.fit(module, train_dataloaders=loader(), ckpt_path=path, weights_only=True)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("die_after", [1, 3, 4, 6, 8, 11])
def test_lightning_resumes_with_the_next_batch(die_after: int, tmp_path: Any) -> None:
    """Epochs have 4 batches: kills in mid-epoch, before an epoch's last batch, and between epochs."""
    whole = Recorder()
    fit(whole, tmp_path / "whole", resume=False)
    assert whole.seen == [batch for epoch in range(3) for batch in rows_of(loader().sampler.batches(epoch))]
    killed, resumed = Recorder(die_after), Recorder()
    with pytest.raises(RuntimeError, match="killed"):
        fit(killed, tmp_path / "killed", resume=False)
    fit(resumed, tmp_path / "killed", resume=True)
    assert killed.seen + resumed.seen == whole.seen
    assert torch.equal(resumed.weight, whole.weight)


def test_lightning_takes_the_next_epoch_after_a_limited_one(tmp_path: Any) -> None:
    module = Recorder()
    fit(module, tmp_path, resume=False, limit_train_batches=2)
    assert module.seen == [batch for epoch in range(3) for batch in rows_of(loader().sampler.batches(epoch))[:2]]
