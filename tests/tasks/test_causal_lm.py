"""Causal language modelling: the loss is that of transformers' own model, however many logits there are at a time."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.corpus import EmbeddedCorpus
from essential_sparsity.data.plain_text import PlainText
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.pruning import ActivationNorm, PerRow, Pruner
from essential_sparsity.runs import Run, read_run
from essential_sparsity.tasks import decoders
from essential_sparsity.tasks.causal_lm import CausalLanguageModel
from essential_sparsity.training import fit

ADAMW = functools.partial(torch.optim.AdamW, lr=3e-3)


def opt(**options: Any) -> TinyLanguageBackbone:
    return TinyLanguageBackbone(family="opt", **options)


def text(**options: Any) -> PlainText:
    return PlainText(EmbeddedCorpus(), **{"block_length": 32, "batch_size": 8, "num_evaluation_rows": 16, **options})


def still(seed: int = 0) -> Any:
    return opt(dropout=0.0).build(num_labels=0, seed=seed, head="causal_lm")


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    data = text()
    data.prepare(opt().preprocessing())
    data.seed(0)
    return next(iter(data.train_dataloader()))


def test_the_loss_and_its_gradients_are_those_of_transformers(batch: dict[str, torch.Tensor]) -> None:
    model = still()
    ours = CausalLanguageModel(model).token_losses(batch).mean()
    theirs = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
    assert abs((ours - theirs).item()) < 1e-5
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (ours, theirs)]
    assert max(float((first - second).abs().max()) for first, second in zip(*gradients, strict=True)) < 1e-5


def test_few_logits_at_a_time_change_neither_loss_nor_gradients(
    batch: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found = still(), []
    for at_once in (1 << 27, 50 * 4096):
        monkeypatch.setattr(decoders, "LOGITS_AT_ONCE", at_once)
        losses = CausalLanguageModel(model).token_losses(batch)
        found.append((losses, torch.autograd.grad(losses.mean(), list(model.parameters()))))
        with torch.no_grad():
            assert torch.allclose(CausalLanguageModel(model).token_losses(batch), losses, atol=1e-6)
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_predictions_are_log_likelihoods_of_rows(batch: dict[str, torch.Tensor]) -> None:
    model = still()
    with torch.no_grad():
        columns = CausalLanguageModel(model).predict_step(batch)
        likely = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)[:, :-1]
    wanted = likely.gather(2, batch["input_ids"][:, 1:, None]).sum((1, 2))
    assert torch.allclose(columns["log_likelihood"], wanted, atol=1e-3)
    assert columns["num_tokens"].tolist() == [31] * 8 and columns["row"].tolist() == batch["row"].tolist()
    assert torch.allclose(columns["loss"], -wanted / 31, atol=1e-4)


def test_an_encoder_is_no_causal_language_model() -> None:
    with pytest.raises(ValueError, match="a model of type 'bert' is an encoder, which sees the words"):
        TinyLanguageBackbone().build(num_labels=0, seed=0, head="causal_lm")
    with pytest.raises(ValueError, match="OPTForSequenceClassification has no output embedding"):
        CausalLanguageModel(opt().build(num_labels=2, seed=0))


def test_a_model_that_changes_its_logits_is_refused() -> None:
    model = still()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="changes its logits by final_logit_softcapping"):
        CausalLanguageModel(model)


def test_what_is_pre_trained_here_has_a_curve_of_perplexity(tmp_path: Path) -> None:
    trainer = {"max_steps": 30, "accelerator": "cpu", "max_epochs": -1}
    task = functools.partial(CausalLanguageModel, optimizer=ADAMW)
    trained = fit(opt(), text(), task, run=tmp_path / "run", trainer=trainer, keep=["model"])
    assert trained["metric"] == "perplexity" and trained["value"] > -np.log(4096) + 0.5

    there = opt(path=str(tmp_path / "run" / "model"))
    levels = evaluate_curve(
        there, text(), CausalLanguageModel, sparsities=["0.0", "0.9"], folder=tmp_path / "curve", pruner=Pruner()
    )
    assert levels[0]["value"] == pytest.approx(trained["value"], abs=1e-6)
    assert levels[1]["sparsity"] == pytest.approx(0.9, abs=1e-4)
    rows = read_run(next((tmp_path / "curve").glob("*sparsity=0.0*"))).predictions().to_pandas()
    assert METRICS["perplexity"].value(rows) == levels[0]["value"]


def test_calibrated_pruners_read_blocks_of_text(tmp_path: Path) -> None:
    from essential_sparsity.data.calibration import TrainingRows

    pruner = Pruner(ActivationNorm(), PerRow(), calibration=TrainingRows(num_rows=8))
    task = functools.partial(CausalLanguageModel, optimizer=ADAMW)
    trainer = {"max_steps": 2, "accelerator": "cpu", "max_epochs": -1}
    found = fit(opt(), text(), task, run=Run(tmp_path), trainer=trainer, pruner=pruner, sparsity="0.5")
    assert found["sparsity"] == 0.5 and found["pruning"] == {"num_calibration_rows": 8}
