"""Masked language modelling: the loss is that of transformers' own model; a new BERT is a function of its seed."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pytorch_lightning import Callback
from safetensors.torch import load_file

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.backbones.new_bert import SHAPES, NewBert
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.block_labels import NextBlock, SourceBlocks
from essential_sparsity.data.corpus import EmbeddedCorpus
from essential_sparsity.data.embedded_text import EmbeddedText
from essential_sparsity.data.masked_text import MaskedText
from essential_sparsity.data.vocabulary import GivenVocabulary, TrainedVocabulary
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.pruning import Pruner, prunable_weights
from essential_sparsity.runs import Run, read_run
from essential_sparsity.tasks.masked_lm import MaskedLanguageModel
from essential_sparsity.tasks.optimization import linear, token_steps
from essential_sparsity.tasks.sequence_classification import SequenceClassification
from essential_sparsity.training import fit

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = TrainedVocabulary(EmbeddedCorpus(), 1024)
ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)


def bert(**options: Any) -> NewBert:
    return NewBert(size="tiny", vocabulary=VOCABULARY, **options)


def text(**options: Any) -> MaskedText:
    return MaskedText(EmbeddedCorpus(), **{"block_length": 32, "batch_size": 16, "num_evaluation_rows": 64, **options})


def prepared(**options: Any) -> MaskedText:
    data = text(**options)
    data.prepare(bert().preprocessing())
    data.seed(0)
    return data


def still(seed: int = 0) -> Any:
    return bert(dropout=0.0).build(num_labels=0, seed=seed, head="masked_lm")


# --- the loss ---------------------------------------------------------------------------------------------------------


def whole_labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Give labels as transformers takes them: −100 wherever nothing is masked."""
    labels = torch.full_like(batch["input_ids"], -100).flatten()
    return labels.index_copy(0, batch["positions"], batch["labels"]).reshape(batch["input_ids"].shape)


def test_the_loss_is_that_of_transformers_from_the_same_weights() -> None:
    model, batch = still(), next(iter(prepared().train_dataloader()))
    ours = MaskedLanguageModel(model).token_losses(batch).mean()
    theirs = model(input_ids=batch["input_ids"], labels=whole_labels(batch)).loss
    assert abs((ours - theirs).item()) < 1e-5
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (ours, theirs)]
    assert max(float((first - second).abs().max()) for first, second in zip(*gradients, strict=True)) < 1e-5


def test_logits_are_those_of_the_whole_model_at_the_masked_places() -> None:
    model, batch = still(), next(iter(prepared(whole_word=True).train_dataloader()))
    whole = model(input_ids=batch["input_ids"]).logits.flatten(0, 1)[batch["positions"]]
    assert torch.allclose(MaskedLanguageModel(model).scores(batch), whole, atol=1e-6)


def test_predictions_are_log_likelihoods_of_rows() -> None:
    model, batch = still(), next(iter(prepared(whole_word=True).train_dataloader()))
    with torch.no_grad():
        columns = MaskedLanguageModel(model).predict_step(batch)
        logits = model(input_ids=batch["input_ids"]).logits.log_softmax(-1)
    labels = whole_labels(batch)
    for index in range(len(batch["row"])):
        masked = labels[index] != -100
        likelihood = logits[index][masked].gather(1, labels[index][masked, None]).sum()
        assert float(columns["log_likelihood"][index]) == pytest.approx(float(likelihood), abs=1e-4)
        assert int(columns["num_tokens"][index]) == int(masked.sum())
    assert columns["row"].tolist() == batch["row"].tolist()


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="BertForSequenceClassification has no output embedding known here"):
        MaskedLanguageModel(TinyLanguageBackbone().build(num_labels=2, seed=0))
    with pytest.raises(ValueError, match="task has no optimizer"):
        MaskedLanguageModel(still()).configure_optimizers()


# --- the backbone -----------------------------------------------------------------------------------------------------


def test_a_new_bert_is_a_function_of_its_seed_with_a_tied_output() -> None:
    torch.manual_seed(1)
    first = still(7)
    torch.manual_seed(2)
    second, other = still(7), still(8)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    weight = first.get_input_embeddings().weight
    assert first.get_output_embeddings().weight is weight
    assert not torch.equal(weight, other.get_input_embeddings().weight)
    assert first.config._attn_implementation == "sdpa" and first.training
    assert abs(weight.std().item() - 0.02) < 1e-3


def test_only_the_blocks_are_prunable() -> None:
    backbone, model = bert(), still()
    names = set(prunable_weights(model, backbone.architecture(model)))
    assert len(names) == 2 * 6 and all(name.startswith("encoder.layer.") for name in names)


@pytest.mark.parametrize("size", SHAPES)
def test_sizes_are_the_published_ones(size: str) -> None:
    config = NewBert(size=size, vocabulary=VOCABULARY).model_config()
    published = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8)}
    published |= {"base": (12, 768, 12), "large": (24, 1024, 16)}
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == published[size]
    assert config.intermediate_size == 4 * config.hidden_size and config.vocab_size == 1024


def test_what_was_pre_trained_loads_with_and_without_its_head(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = still(3)
    bert().save(model, tmp_path)
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    again = bert(path=str(tmp_path), pretrained=True)
    again.check()
    assert again.preprocessing().digest == bert().preprocessing().digest
    loaded: Any = again.build(num_labels=0, seed=9, head="masked_lm", require_head=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    classifier: Any = LanguageBackbone(path=tmp_path).build(num_labels=2, seed=9)
    stored = model.bert.state_dict()
    assert all(
        torch.equal(value, stored[name]) for name, value in classifier.bert.state_dict().items() if name in stored
    )
    untrained = bert(path=str(tmp_path)).build(num_labels=0, seed=9, head="masked_lm")
    assert not torch.equal(next(untrained.parameters()), next(model.parameters()))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone\.size='minni' is no size of BERT: did you mean 'mini'\?"):
        NewBert(size="minni", vocabulary=VOCABULARY).check()
    with pytest.raises(ValueError, match=r"backbone\.vocabulary is not set"):
        NewBert().check()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer's folder"):
        NewBert(vocabulary=GivenVocabulary(tmp_path / "none")).check()
    with pytest.raises(ValueError, match="a tokenizer of 1024 tokens does not fit a model that predicts 2000"):
        bert(config={"vocab_size": 2000}).preprocessing()
    with pytest.raises(ValueError, match=r"head='masked_ml' is unknown: did you mean 'masked_lm'\?"):
        bert().build(num_labels=0, seed=0, head="masked_ml")
    bert().save(still(), tmp_path / "model")
    TrainedVocabulary(EmbeddedCorpus(), 512).tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="a tokenizer of 512 tokens does not fit a model that predicts 1024"):
        LanguageBackbone(path=tmp_path / "model").build(num_labels=0, seed=0, head="masked_lm")
    classifier = TinyLanguageBackbone()
    classifier.save(classifier.build(num_labels=2, seed=0), tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"weights that BertForMaskedLM needs, first 'cls\..* with its head"):
        LanguageBackbone(path=tmp_path / "classifier").build(num_labels=0, seed=0, head="masked_lm")


# --- whole runs -------------------------------------------------------------------------------------------------------


def arguments(folder: Path, **changed: Any) -> dict[str, Any]:
    return {
        "backbone": bert(),
        "data": text(),
        "task": functools.partial(MaskedLanguageModel, optimizer=ADAMW, schedule=linear),
        "run": folder,
        "trainer": {"max_epochs": -1, "max_steps": 12, "accelerator": "cpu", "checkpoint_steps": 3},
        **changed,
    }


class Losses(Callback):
    """Write each step's loss to a file, and end the process at a step."""

    def __init__(self, file: Path, kill: int) -> None:
        self.file, self.kill = file, kill

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with self.file.open("a") as file:
            file.write(f"{trainer.global_step} {float(outputs['loss']).hex()}\n")
        if trainer.global_step == self.kill:
            os._exit(9)


SCRIPT = """
import sys; from pathlib import Path; import torch; torch.set_num_threads(1)
from essential_sparsity.callbacks import SparsityRecorder
from tests.tasks.test_masked_lm import Losses, arguments, fit, text
folder, kill = Path(sys.argv[1]), int(sys.argv[2])
data = text(num_train_rows=112)  # epochs of 7 steps
watch = [SparsityRecorder(2), Losses(folder / "losses", kill)]
fit(**arguments(folder / "run", data=data), keep=["model"], callbacks=watch)
"""


def start(folder: Path, kill: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), str(kill)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (9 if kill else 0), done.stderr[-800:]
    return done.returncode


@pytest.mark.slow
def test_a_killed_pre_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    start(tmp_path / "whole")
    start(tmp_path / "killed", 8)  # in the second epoch of 7 steps; the last checkpoint is of step 6
    start(tmp_path / "killed")
    whole, killed = ((tmp_path / name / "losses").read_text().splitlines() for name in ("whole", "killed"))
    assert len(whole) == 12 and len(killed) == 14 and set(killed) == set(whole)
    ours, theirs = (Run(tmp_path / name / "run") for name in ("killed", "whole"))
    weights, expected = (load_file(run.model / "model.safetensors") for run in (ours, theirs))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    traces = [pq.read_table(run.path / "trace.parquet") for run in (ours, theirs)]
    assert traces[0].equals(traces[1])
    assert sorted(set(traces[0]["step"].to_pylist())) == [0, 2, 4, 6, 8, 10, 12]


def test_pre_training_learns_and_reports_held_out_perplexity(tmp_path: Path) -> None:
    trainer = {"max_epochs": -1, "max_steps": 60, "accelerator": "cpu"}
    metrics = fit(**arguments(tmp_path / "run", trainer=trainer))
    assert metrics["metric"] == "perplexity" and metrics["split"] == "held_out" and metrics["num_rows"] == 64
    assert metrics["value"] > -np.log(1024) + 0.5  # far better than guessing
    rows = read_run(tmp_path / "run").predictions().to_pandas()
    assert METRICS["perplexity"].value(rows) == metrics["value"]
    assert metrics["value"] == pytest.approx(-np.average(rows["loss"], weights=rows["num_tokens"]), abs=1e-5)


def test_a_pre_trained_model_is_the_parent_of_a_fine_tuning(tmp_path: Path) -> None:
    trainer = {"max_steps": 2, "accelerator": "cpu"}
    parent = arguments(tmp_path / "parent", trainer={"max_epochs": -1, **trainer})
    child = {
        **arguments(tmp_path / "child", trainer=trainer, parent=parent, sparsity=0.5),
        "data": EmbeddedText(num_train_rows=64, num_evaluation_rows=32, max_length=32),
        "task": functools.partial(SequenceClassification, optimizer=ADAMW),
    }
    metrics = fit(**child)
    assert metrics["metric"] == "accuracy" and metrics["sparsity"] == 0.5
    assert Run(tmp_path / "parent").finished and (tmp_path / "parent" / "model" / "tokenizer.json").is_file()


def test_a_pre_trained_model_is_evaluated_under_masks(tmp_path: Path) -> None:
    bert().save(still(), tmp_path / "model")
    backbone = LanguageBackbone(path=tmp_path / "model")
    levels = evaluate_curve(
        backbone, text(), MaskedLanguageModel, sparsities=[0.0, 0.9], folder=tmp_path, pruner=Pruner(), device="cpu"
    )
    assert [level["metric"] for level in levels] == ["perplexity"] * 2 and levels[0]["value"] != levels[1]["value"]


@pytest.mark.parametrize("kind", [SourceBlocks, NextBlock])
def test_other_objectives_train_on_the_same_blocks(kind: Any, tmp_path: Path) -> None:
    data = kind(EmbeddedCorpus(), block_length=32, batch_size=16, num_holdout_rows=50, num_evaluation_rows=32)
    task = functools.partial(SequenceClassification, optimizer=ADAMW)
    trainer = {"max_epochs": -1, "max_steps": 2, "accelerator": "cpu"}
    metrics = fit(**arguments(tmp_path / "run", data=data, task=task, trainer=trainer))
    assert metrics["metric"] == "accuracy" and 0 <= metrics["value"] <= 1


def test_a_budget_in_tokens_is_one_of_steps(tmp_path: Path) -> None:
    trainer = {"max_epochs": -1, "max_tokens": 3 * 16 * 32, "accelerator": "cpu"}
    assert fit(**arguments(tmp_path / "run", trainer=trainer))["steps"] in (3, 4)  # an epoch's last batch is smaller
    assert token_steps(1000, (640, 0), 10, {}) == 16  # 64 tokens a step
    assert token_steps(1000, (640, 0), 10, {"accumulate_grad_batches": 2}) == 8
    with pytest.raises(ValueError, match=r"max_tokens needs rows of text"):
        token_steps(1000, None, 10, {})
    with pytest.raises(ValueError, match=r"max_tokens=0 is no whole number of at least 1"):
        token_steps(0, (640, 0), 10, {})


def test_bf16_gradients_are_clipped_under_a_fused_optimizer(tmp_path: Path) -> None:
    seen = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            if gradients:
                seen.append(torch.nn.utils.get_total_norm(gradients).item())

    task = functools.partial(MaskedLanguageModel, optimizer=functools.partial(ADAMW, fused=True))
    trainer = {"max_epochs": -1, "max_steps": 3, "accelerator": "cpu", "precision": "bf16-mixed"}
    trainer |= {"gradient_clip_val": 0.01}
    metrics = fit(**arguments(tmp_path / "run", task=task, trainer=trainer), callbacks=[Norms()])
    assert np.isfinite(metrics["value"])
    assert seen and seen == pytest.approx([0.01] * len(seen), rel=1e-3)


def test_a_budget_in_time_ends_a_run_that_has_a_schedule(tmp_path: Path) -> None:
    trainer = {"max_epochs": -1, "max_steps": 100_000, "max_time": {"seconds": 1}, "accelerator": "cpu"}
    assert 0 < fit(**arguments(tmp_path / "run", trainer=trainer))["steps"] < 1000
