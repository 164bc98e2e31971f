"""Tasks: the loss and its rows, groups without decay, schedules, and learning on real rows."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
import torch.nn.functional as functional
from torch import nn

from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.digits import Digits
from essential_sparsity.data.glue import Glue
from essential_sparsity.tasks import optimization
from essential_sparsity.tasks.image_classification import ImageClassification
from essential_sparsity.tasks.sequence_classification import SequenceClassification


class Fixed(nn.Module):
    """A model that gives the same logits whatever it reads."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, *images: Any, **texts: Any) -> Any:
        return self.logits if images else SimpleNamespace(logits=self.logits)


LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]])
BATCH = {"labels": torch.tensor([0, 1, 1]), "row": torch.tensor([7, 8, 9])}
TEXT = {**BATCH, "input_ids": torch.zeros(3, 2), "attention_mask": torch.ones(3, 2)}
IMAGES = {**BATCH, "images": torch.zeros(3, 1, 8, 8)}
SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize(("kind", "batch"), [(SequenceClassification, TEXT), (ImageClassification, IMAGES)])
def test_predictions_are_columns_by_stable_row(kind: Any, batch: Any) -> None:
    columns = kind(Fixed(LOGITS), num_labels=2, optimizer=SGD).predict_step(batch)
    assert list(columns) == ["row", "label", "prediction", "loss", "confidence"]
    assert columns["row"].tolist() == [7, 8, 9]
    assert columns["label"].tolist() == [0, 1, 1]
    assert columns["prediction"].tolist() == [0, 1, 0]
    wanted = [-math.log(1 / (1 + math.exp(margin))) for margin in (-2.0, -1.0, 4.0)]
    assert columns["loss"].tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_training_loss_is_the_mean_of_the_row_losses() -> None:
    task = SequenceClassification(Fixed(LOGITS), num_labels=2, optimizer=SGD)
    assert torch.isclose(task.loss(TEXT), task.predict_step(TEXT)["loss"].mean())


def test_label_smoothing_changes_the_training_loss_alone() -> None:
    plain, smooth = (
        SequenceClassification(Fixed(LOGITS), num_labels=2, optimizer=SGD, label_smoothing=value)
        for value in (0.0, 0.2)
    )
    assert torch.equal(plain.predict_step(TEXT)["loss"], smooth.predict_step(TEXT)["loss"])
    wanted = functional.cross_entropy(LOGITS, BATCH["labels"], label_smoothing=0.2)
    assert torch.isclose(smooth.loss(TEXT), wanted)
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5 lies outside \[0, 1\)"):
        SequenceClassification(Fixed(LOGITS), num_labels=2, optimizer=SGD, label_smoothing=1.5)


def test_one_label_is_a_regression_with_squared_error() -> None:
    task = SequenceClassification(Fixed(torch.tensor([[1.0], [2.0], [4.0]])), num_labels=1, optimizer=SGD)
    columns = task.predict_step({**TEXT, "labels": torch.tensor([1.0, 4.0, 3.5])})
    assert columns["prediction"].tolist() == [1.0, 2.0, 4.0]
    assert columns["loss"].tolist() == [0.0, 4.0, 0.25]


# --- optimizers and schedules -----------------------------------------------------------------------------------------


def test_biases_and_norms_are_not_decayed() -> None:
    model = TinyLanguageBackbone().build(num_labels=2, seed=0)
    decayed, others = optimization.parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert all("LayerNorm" in names[id(weight)] or names[id(weight)].endswith("bias") for weight in others["params"])
    assert not any(
        "LayerNorm" in names[id(weight)] or names[id(weight)].endswith("bias") for weight in decayed["params"]
    )
    assert len(decayed["params"]) + len(others["params"]) == len(names)


def test_the_optimizers_own_decay_is_the_first_groups() -> None:
    made = optimization.make_optimizer(nn.Linear(2, 2), partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.03))
    assert [group["weight_decay"] for group in made.param_groups] == [0.03, 0.0]
    made = optimization.make_optimizer(nn.Linear(2, 2), SGD)
    assert [group["weight_decay"] for group in made.param_groups] == [0.0, 0.0]


def test_frozen_and_tied_weights_are_left_out_and_taken_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    (group,) = optimization.parameter_groups(model, 0.1)
    assert [id(weight) for weight in group["params"]] == [id(model[0].weight)]


def rates(schedule: Any, num_steps: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, num_steps, **options)
    seen = []
    for _ in range(num_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


@pytest.mark.parametrize(
    ("schedule", "options", "wanted"),
    [
        (optimization.linear, {}, [1, 0.75, 0.5, 0.25, 0]),
        (optimization.linear, {"warmup": 0.5}, [0, 0.5, 1, 0.5, 0]),
        (optimization.constant, {}, [1, 1, 1, 1, 1]),
        (optimization.constant, {"warmup": 0.5}, [0, 0.5, 1, 1, 1]),
        (optimization.cosine, {}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        (
            optimization.cosine,
            {"final": 0.2},
            [1, 0.6 + 0.8 * math.sqrt(0.125), 0.6, 0.6 - 0.8 * math.sqrt(0.125), 0.2],
        ),
        (optimization.one_cycle, {"warmup": 0.5, "initial": 0.2}, [0.2, 0.6, 1, 0.5, 0]),
    ],
)
def test_schedules(schedule: Any, options: dict[str, float], wanted: list[float]) -> None:
    assert rates(schedule, 4, **options) == pytest.approx(wanted, abs=1e-12)


def test_schedules_refuse_a_warmup_in_steps_and_training_without_end() -> None:
    with pytest.raises(ValueError, match=r"schedule\.warmup=100 lies outside \[0, 1\): give a share"):
        rates(optimization.linear, 4, warmup=100)
    with pytest.raises(ValueError, match="a schedule needs a last step"):
        optimization.configured(nn.Linear(2, 2), SGD, optimization.linear, math.inf)


# --- learning ---------------------------------------------------------------------------------------------------------


def fit(task: lightning.LightningModule, data: Any, epochs: int) -> None:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    loaders = list(data.evaluation_dataloaders().values())
    trainer.fit(task, train_dataloaders=data.train_dataloader(), val_dataloaders=loaders)


def accuracy(task: Any, loader: Any) -> float:
    task.eval()
    with torch.inference_mode():
        columns = [task.predict_step(batch) for batch in loader]
    right = sum(int((part["prediction"] == part["label"]).sum()) for part in columns)
    return right / sum(len(part["row"]) for part in columns)


def test_a_small_vit_learns_digits() -> None:
    from essential_sparsity.backbones.vision import VisionBackbone

    backbone = VisionBackbone(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=8,
        num_channels=1,
        arguments={
            "patch_size": 2,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "class_token": False,
            "global_pool": "avg",
        },
    )
    data = Digits()
    data.prepare(backbone.preprocessing())
    data.seed(0)
    adam = partial(torch.optim.AdamW, lr=3e-3)
    task = ImageClassification(
        backbone.build(num_labels=10, seed=0), num_labels=10, optimizer=adam, schedule=optimization.linear
    )
    fit(task, data, epochs=6)
    assert accuracy(task, data.evaluation_dataloaders()["test"]) > 0.5  # chance is 0.1


@pytest.mark.real
def test_the_real_model_learns_a_few_sentences_by_heart(es_data: Path, es_models: Path, tmp_path: Path) -> None:
    backbone = LanguageBackbone(path=es_models / "all-MiniLM-L6-v2", dropout=0.0)
    data = Glue(
        "rte", root=es_data, num_train_rows=16, num_evaluation_rows=8, max_length=32, batch_size=8, cache=tmp_path
    )
    data.check()
    data.prepare(backbone.preprocessing())
    adam = partial(torch.optim.AdamW, lr=3e-4, fused=True)
    task = SequenceClassification(
        backbone.build(num_labels=2, seed=0), num_labels=2, optimizer=adam, schedule=optimization.linear
    )
    fit(task, data, epochs=6)
    assert accuracy(task, data.train_dataloader()) > 0.9  # chance is 0.5
