"""Question answering: best spans are the best of all, the loss is transformers' own, heads fit any kind of model."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.embedded_squad import EmbeddedSquad
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.pruning import prunable_weights
from essential_sparsity.pruning.lottery import OMP
from essential_sparsity.runs import Run, read_run
from essential_sparsity.tasks.optimization import linear
from essential_sparsity.tasks.question_answering import QuestionAnswering, best_spans, best_windows
from essential_sparsity.training import fit

ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
QA = functools.partial(QuestionAnswering, optimizer=ADAMW, schedule=linear)


def still(family: str = "bert", seed: int = 0) -> Any:
    backbone = TinyLanguageBackbone(family=family, dropout=0.0)
    return backbone.build(num_labels=2, seed=seed, head="question_answering").eval()


def embedded(tmp_path: Path, **options: Any) -> EmbeddedSquad:
    return EmbeddedSquad(cache=tmp_path / "cache", **{"num_train_rows": 64, "num_evaluation_rows": 24, **options})


def prepared(tmp_path: Path, **options: Any) -> EmbeddedSquad:
    data = embedded(tmp_path, **options)
    data.prepare(TinyLanguageBackbone().preprocessing())
    return data


# --- spans ------------------------------------------------------------------------------------------------------------


def best_span_slowly(start: Any, end: Any, context: Any, most: int) -> tuple[float, int, int]:
    """Slow oracle: try every span."""
    spans = [
        (float(start[i] + end[j]), i, j)
        for i in range(context[0], context[1])
        for j in range(i, min(i + most, context[1]))
    ]
    return max(spans)


@pytest.mark.parametrize("most", [1, 4, 30])
def test_the_best_span_is_the_best_of_all(most: int) -> None:
    generator = torch.Generator().manual_seed(most)
    starts, ends = (torch.randn(20, 17, generator=generator) for _ in range(2))
    context = torch.stack([torch.randint(0, 8, (20,)), torch.randint(9, 18, (20,))], dim=1)
    sums, first, last = best_spans(starts, ends, context, most)
    for window in range(20):
        wanted = best_span_slowly(starts[window], ends[window], context[window].tolist(), most)
        assert (float(sums[window]), int(first[window]), int(last[window])) == pytest.approx(wanted)


def test_an_answer_stays_in_the_context_and_is_not_too_long() -> None:
    starts, ends = torch.zeros(1, 6), torch.zeros(1, 6)
    starts[0, 0] = ends[0, 0] = 9.0  # [CLS]
    starts[0, 2], ends[0, 5] = 3.0, 3.0
    assert [int(part) for part in best_spans(starts, ends, torch.tensor([[2, 6]]), 4)[1:]] == [2, 5]
    assert int(best_spans(starts, ends, torch.tensor([[2, 6]]), 3)[0]) == 3
    assert best_spans(starts, ends, torch.tensor([[3, 3]]), 4)[0].item() == float("-inf")


def test_the_window_of_the_highest_sum_answers_the_question() -> None:
    sums = torch.tensor([1.0, 5.0, 2.0, 7.0, 7.0, float("-inf")])
    assert best_windows(sums, torch.tensor([0, 0, 1, 1, 1, 2]), 3).tolist() == [1, 3, 5]


def test_predictions_are_the_best_spans_of_all_windows_of_each_question(tmp_path: Path) -> None:
    data = prepared(tmp_path)
    task = QuestionAnswering(still("bert", seed=3), max_answer_length=5)
    seen = 0
    for batch in data.evaluation_dataloaders()["validation"]:
        with torch.no_grad():
            columns = task.predict_step(batch)
            starts, ends = task.scores(batch)
            losses = task.window_losses((starts, ends), batch["labels"])
        assert columns["row"].tolist() == batch["row"].tolist()
        for index in range(len(batch["row"])):
            own = (batch["question"] == index).nonzero().flatten().tolist()
            spans = [(*best_span_slowly(starts[w], ends[w], batch["context"][w].tolist(), 5), w) for w in own]
            _, first, last, window = max(spans)
            assert int(columns["window"][index]) == int(batch["window"][window])
            assert (int(columns["start"][index]), int(columns["end"][index])) == (first, last)
            assert float(columns["loss"][index]) == pytest.approx(float(losses[own].mean()), abs=1e-6)
            seen += len(own) > 1
    assert seen > 3


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_the_loss_is_that_of_transformers(family: str, tmp_path: Path) -> None:
    model, batch = still(family), next(iter(prepared(tmp_path).train_dataloader()))
    rows = batch["attention_mask"].bool().all(1)  # transformers lets padding take part
    whole = {name: value[rows] for name, value in batch.items()}
    start, end = whole["labels"].T
    ours = QuestionAnswering(model).loss(whole)
    inputs = {name: whole[name] for name in ("input_ids", "attention_mask")}
    theirs = model(**inputs, start_positions=start, end_positions=end).loss
    assert rows.any() and torch.isclose(ours, theirs, atol=1e-6)


def test_padding_changes_no_loss(tmp_path: Path) -> None:
    task, batch = QuestionAnswering(still()), next(iter(prepared(tmp_path).train_dataloader()))
    wider = {**batch, **{n: nn.functional.pad(batch[n], (0, 9)) for n in ("input_ids", "attention_mask")}}
    assert torch.isclose(task.loss(batch), task.loss(wider), atol=1e-5)


def test_other_data_and_wrong_values_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task=question_answering asks data with questions, these have 3 labels"):
        QuestionAnswering(nn.Linear(1, 1), num_labels=3)
    with pytest.raises(ValueError, match=r"task\.max_answer_length=0 is no whole number of at least 1"):
        QuestionAnswering(still(), max_answer_length=0)
    batch = next(iter(prepared(tmp_path).train_dataloader()))
    with pytest.raises(ValueError, match="task=question_answering asks data with questions: give data=squad"):
        QuestionAnswering(still()).loss({**batch, "labels": batch["labels"][:, 0]})
    with pytest.raises(ValueError, match="task has no optimizer"):
        QuestionAnswering(still()).configure_optimizers()


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_the_head_is_new_a_function_of_its_seed_and_not_prunable(family: str) -> None:
    first, again, other = still(family, 7), still(family, 7), still(family, 8)
    assert torch.equal(first.qa_outputs.weight, again.qa_outputs.weight)
    assert not torch.equal(first.qa_outputs.weight, other.qa_outputs.weight)
    assert first.qa_outputs.weight.shape[0] == 2
    prunable = prunable_weights(first)
    assert len(prunable) == 12 and not any("qa_outputs" in name for name in prunable)


def test_a_pretrained_model_without_this_head_gets_a_new_one(es_models: Path) -> None:
    backbone = LanguageBackbone(path=es_models / "all-MiniLM-L6-v2")
    model = backbone.build(num_labels=2, seed=0, head="question_answering")
    plain = backbone.build(num_labels=2, seed=0)
    ours, theirs = prunable_weights(model), prunable_weights(plain)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(ValueError, match=r"lacks 2 weights .* 'qa_outputs\.bias': .* with its head"):
        backbone.build(num_labels=2, seed=0, head="question_answering", require_head=True)


def test_a_kind_of_model_without_this_head_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GemmaConfig().to_dict()))
    backbone = LanguageBackbone(path=tmp_path, pretrained=False)
    with pytest.raises(ValueError, match="transformers has no question answering head for a model of type 'gemma'"):
        backbone.build(num_labels=2, seed=0, head="question_answering")


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_trains_and_its_saved_model_evaluates_to_the_same_scores(precision: str, tmp_path: Path) -> None:
    trainer = {"max_steps": 3, "accelerator": "cpu", "precision": precision}
    run = Run(tmp_path / "run")
    data = embedded(tmp_path)
    metrics = fit(TinyLanguageBackbone(), data, QA, run=run, sparsity=0.5, trainer=trainer, keep=["model"])
    assert (metrics["metric"], metrics["chance"], metrics["num_rows"]) == ("squad_f1", 0.0, 24)
    rows = read_run(run.path).predictions().to_pandas()
    assert list(rows.row) == sorted(rows.row) and set(rows.columns) >= {"answer_start", "answer_end", "loss"}
    for name in ("squad_f1", "exact_match"):
        assert METRICS[name].value(rows) == metrics["metrics"][f"validation/{name}"]
    assert metrics["value"] == metrics["metrics"]["validation/squad_f1"] >= metrics["metrics"]["validation/exact_match"]

    curve = evaluate_curve(
        LanguageBackbone(path=run.model),
        embedded(tmp_path),
        QuestionAnswering,
        sparsities=[0.5, 0.9],
        folder=tmp_path / "curve",
        pruner=OMP,
        precision=precision,
    )
    assert curve[0]["metrics"]["validation/loss"] == pytest.approx(metrics["metrics"]["validation/loss"], abs=1e-5)
    assert curve[0]["value"] == pytest.approx(metrics["value"], abs=1e-6)
    assert curve[1]["num_pruned"] > curve[0]["num_pruned"]


def test_training_learns_its_own_questions(tmp_path: Path) -> None:
    data = prepared(tmp_path, num_train_rows=12)
    model, batches = still().train(), list(data.train_dataloader())
    task = QuestionAnswering(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for batch in batches * 25:
        losses.append(task.loss(batch))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > 3 and losses[-1] < 0.5 * losses[0]
