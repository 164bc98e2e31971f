"""A loss that is no number stops a training at that very step, and no checkpoint of it is ever written."""

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from toy_training import Network, Toy, fit, sgd

from essential_sparsity.callbacks import training_loss
from essential_sparsity.callbacks.checkpoint_every import CheckpointEvery
from essential_sparsity.callbacks.training_loss import TrainingLoss


class Broken(Toy):
    """Gives a loss that is no number in batch `at`, counted from 1."""

    def __init__(self, at: int, value: float = float("nan")) -> None:
        super().__init__(Network(), sgd)
        self.at, self.value = at, value

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if len(self.losses) == self.at else loss


class Torn(Callback):
    """Makes a weight NaN behind optimizer step `at`, as a gradient that overflows does; the loss was a number."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            with torch.no_grad():
                pl_module.network.head.weight[0, 0] = torch.nan


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_stops_at_its_step_and_names_the_last_good_checkpoint(value, tmp_path):
    module = Broken(7, float(value))
    with pytest.raises(FloatingPointError) as error:
        fit(module, 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=3)])
    assert len(module.losses) == 7  # no batch more
    told = f"the training loss is {value} at batch 7 (optimizer step 7), and the last good checkpoint is that of step 6"
    assert str(error.value).startswith(f"{told}: lower optimizer.lr")
    assert vars(error.value)["step"] == 7
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 2\), and there is no checkpoint yet: lower"):
        fit(Broken(2), 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=30)])
    with pytest.raises(FloatingPointError, match=r"batch 5 \(optimizer step 2\), and there is no checkpoint yet"):
        fit(Broken(5), 50, [TrainingLoss()], accumulate_grad_batches=2)


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")
def test_a_run_that_goes_on_knows_the_checkpoint_that_it_started_from(tmp_path):
    fit(Toy(Network(), sgd), 8, [TrainingLoss(), CheckpointEvery(tmp_path, steps=5)])
    with pytest.raises(FloatingPointError, match=r"at batch 7 \(optimizer step 7\), .* checkpoint is that of step 5"):
        fit(Broken(2), 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=5)], ckpt_path=tmp_path / "last.ckpt")


def test_where_losses_are_read_later_the_step_is_still_theirs_and_no_checkpoint_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(training_loss, "under_way", lambda loss: 2)
    module = Broken(7)
    with pytest.raises(FloatingPointError, match=r"at batch 7 \(optimizer step 7\)"):
        fit(module, 50, [TrainingLoss()])
    assert len(module.losses) == 9
    with pytest.raises(FloatingPointError, match=r"at batch 7 \(optimizer step 7\), .* checkpoint is that of step 4"):
        fit(Broken(7), 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=4)])
    with pytest.raises(FloatingPointError, match="at batch 7"):
        fit(Broken(7), 7, [TrainingLoss()])  # the last batch of all
    with pytest.raises(FloatingPointError, match=r"batch 8 .* checkpoint is that of step 4"):
        fit(Broken(8), 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=4)])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_weights_that_are_no_numbers_never_replace_a_good_checkpoint(tmp_path):
    with pytest.raises(FloatingPointError, match=r"weight 'network\.head\.weight' is NaN .* step 6, .* of step 3: "):
        fit(Toy(Network(), sgd), 50, [Torn(6), TrainingLoss(), CheckpointEvery(tmp_path, steps=3)])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_the_step_is_named_and_few_follow(tmp_path):
    module = Broken(7)
    with pytest.raises(FloatingPointError, match=r"at batch 7 \(optimizer step 7\), .* checkpoint is that of step 6"):
        fit(module, 50, [TrainingLoss(), CheckpointEvery(tmp_path, steps=3)], accelerator="cuda")
    assert len(module.losses) <= 7 + training_loss.UNDER_WAY
