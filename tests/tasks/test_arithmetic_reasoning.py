"""Arithmetic reasoning: trees grow as prefix order says, slots are copied, values decide, and the decoder is a head."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.calibration import TrainingRows
from essential_sparsity.data.embedded_arithmetic import EmbeddedArithmetic
from essential_sparsity.data.expressions import OPERATORS, UNKNOWN
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.predictions import predict
from essential_sparsity.pruning import ActivationNorm, PerRow, Pruner, Unstructured, prunable_weights
from essential_sparsity.pruning.lottery import OMP
from essential_sparsity.runs import Run, read_run
from essential_sparsity.tasks.arithmetic import ArithmeticReasoning, same_tokens, two_rates, values_of
from essential_sparsity.tasks.expression_decoder import ExpressionDecoder, Tree, expression_losses
from essential_sparsity.training import fit

ADAMW = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01)
TASK = functools.partial(ArithmeticReasoning, optimizer=ADAMW, width=64, decoder_lr=3e-3, dropout=0.0)
BACKBONE = TinyLanguageBackbone(dropout=0.0)


@pytest.fixture(scope="module")
def data() -> EmbeddedArithmetic:
    """Word problems made ready for the tiny backbone."""
    made = EmbeddedArithmetic(num_evaluation_rows=40)
    made.prepare(BACKBONE.preprocessing())
    made.seed(0)
    return made


@pytest.fixture
def module(data: EmbeddedArithmetic) -> ArithmeticReasoning:
    """An untrained solver, in evaluation."""
    torch.manual_seed(0)
    model = BACKBONE.build(num_labels=data.num_labels, seed=0, head="features")
    return TASK(model, num_labels=data.num_labels).eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 150 steps at sparsity 0.3, with its model."""
    run = Run(tmp_path_factory.mktemp("runs") / "trained")
    options: dict[str, Any] = {"pruner": OMP, "sparsity": 0.3, "keep": ["model"]}
    fit(
        BACKBONE,
        EmbeddedArithmetic(batch_size=16),
        TASK,
        run=run,
        trainer={"max_steps": 150, "max_epochs": -1},
        **options,
    )
    return run


# --- the tree ---------------------------------------------------------------------------------------------------------


def places_of(tokens: list[int]) -> list[int]:
    """Slow oracle: walk the tree, and note for each token 0 (root) or 1 + 2 · operator + (1 on the right)."""
    rest, places = list(tokens), []

    def walk(place: int) -> None:
        token = rest.pop(0)
        places.append(place)
        if token < len(OPERATORS):
            walk(1 + 2 * token)
            walk(2 + 2 * token)

    walk(0)
    return places


def test_places_follow_prefix_order_and_a_whole_tree_is_known() -> None:
    expressions = [[0, 1, 5, 6, 2, 5, 3, 6, 7], [3, 5, 6], [5], [2, 2, 2, 5, 5, 5, 5], [0, 5, 0, 5, 0, 5, 0, 0, 0]]
    longest = max(map(len, expressions))
    padded = torch.tensor([row + [UNKNOWN] * (longest - len(row)) for row in expressions])
    tree = Tree.empty(len(expressions), longest, padded.device)
    steps = []
    for choice in padded.unbind(1):
        steps.append(tree.place)
        tree = tree.after(choice)
    places = torch.stack(steps, 1).tolist()
    for row, expected in zip(places[:4], map(places_of, expressions[:4]), strict=True):
        assert row[: len(expected)] == expected
    assert (tree.depth == 0).tolist() == [True, True, True, True, False]


# --- the decoder ------------------------------------------------------------------------------------------------------


def inputs(num_rows: int = 3, length: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(num_rows, length, dtype=torch.long)
    mask[1:2, 4:] = 0
    return torch.randn(num_rows, length, 8), mask, torch.tensor([[1, 3], [2, -1], [-1, -1]])[:num_rows]


def test_what_is_written_is_the_likeliest_token_after_those_before_it() -> None:
    torch.manual_seed(5)
    decoder = ExpressionDecoder(8, 6, width=16).eval()
    encoded, mask, slots = inputs()
    written, whole = decoder.write(encoded, mask, slots, 9)
    logits = decoder.teach(encoded, mask, slots, written)
    inside = written >= 0
    assert torch.equal(logits.argmax(-1)[inside], written[inside])
    for row, is_whole in zip(written.tolist(), whole.tolist(), strict=True):
        tokens = [token for token in row if token >= 0]
        waiting = 1 + sum(1 if token < len(OPERATORS) else -1 for token in tokens)
        assert (waiting == 0) == is_whole


def test_a_slot_that_is_not_there_is_never_chosen() -> None:
    decoder = ExpressionDecoder(8, 6, width=16).eval()
    encoded, mask, slots = inputs()
    probabilities = decoder.teach(encoded, mask, slots, torch.zeros(3, 4, dtype=torch.long)).softmax(-1)
    assert (probabilities[1, :, 7] == 0).all() and (probabilities[2, :, 6:] == 0).all()
    assert (probabilities[0] > 0).all()


@torch.no_grad()
def test_padding_and_company_change_nothing() -> None:
    decoder = ExpressionDecoder(8, 6, width=16).eval()
    encoded, mask, slots = inputs()
    expression = torch.tensor([[0, 6, 7], [5, -100, -100], [4, -100, -100]])
    losses = expression_losses(decoder.teach(encoded, mask, slots, expression), expression)
    for row in range(3):
        length, tokens = int(mask[row].sum()), int((expression[row] >= 0).sum())
        one = slice(row, row + 1)
        logits = decoder.teach(encoded[one, :length], mask[one, :length], slots[one], expression[one, :tokens])
        alone = torch.nn.functional.cross_entropy(logits[0], expression[row, :tokens])  # slow oracle: by itself
        assert float(losses[row]) == pytest.approx(float(alone), rel=1e-5)


@torch.no_grad()
def test_a_constant_that_the_vocabulary_lacks_is_no_part_of_the_loss() -> None:
    decoder = ExpressionDecoder(8, 6, width=16).eval()
    encoded, mask, slots = inputs(1)
    expression = torch.tensor([[0, UNKNOWN, 6]])
    logits = decoder.teach(encoded, mask, slots, expression)
    known = torch.nn.functional.cross_entropy(logits[0, [0, 2]], expression[0, [0, 2]])
    assert float(expression_losses(logits, expression)) == pytest.approx(float(known), rel=1e-6)


# --- values -----------------------------------------------------------------------------------------------------------


def test_what_does_not_parse_is_wrong_and_counted() -> None:
    operands = torch.from_numpy(np.array([[2.0, 0.0]] * 4).view(np.int64))
    written = torch.tensor([[0, 4, 4], [3, 4, 5], [0, 0, 0], [4, -1, -1]])
    values = values_of(written, torch.tensor([True, True, False, True]), operands)
    assert np.array_equal(values, [4.0, np.nan, np.nan, 2.0], equal_nan=True)


def test_expressions_are_the_same_whatever_their_padding() -> None:
    written = torch.tensor([[0, 4, 5, -1], [4, -1, -1, -1], [4, -1, -1, -1]])
    assert same_tokens(written, torch.tensor([[0, 4, 5], [5, -100, -100], [4, -100, -100]])).tolist() == [
        True,
        False,
        True,
    ]


def test_columns_say_right_parsed_and_exact(module: Any, data: EmbeddedArithmetic, monkeypatch: Any) -> None:
    (batch,) = data.evaluation_dataloaders()["test"]
    whole = torch.ones(len(batch["row"]), dtype=torch.bool)
    with monkeypatch.context() as changed:
        changed.setattr(module.decoder, "write", lambda *_: (batch["expression"], whole))
        columns = module.predict_step(batch)
    assert columns["right"].all() and columns["parsed"].all() and columns["exact"].all()
    module.max_tokens = 1
    columns = module.predict_step(batch)
    assert (columns["right"] <= columns["parsed"]).all() and not columns["exact"].any()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_numbers_are_exact_in_every_precision(precision: str, module: Any, data: EmbeddedArithmetic) -> None:
    if precision == "bf16-true":
        module.to(torch.bfloat16)
    expressions = {
        row: ids
        for batch in data.evaluation_dataloaders()["test"]
        for row, ids in zip(batch["row"], batch["expression"])
    }
    assert len(expressions) == 40
    columns = predict(module, data.evaluation_dataloaders(), precision=precision)["test"]
    assert np.isfinite(columns["loss"]).all() and set(columns["row"]) == {int(row) for row in expressions}
    (batch,) = data.evaluation_dataloaders()["test"]
    values = values_of(batch["expression"], torch.ones(40, dtype=torch.bool), batch["operands"])
    assert np.array_equal(values, batch["answer"].numpy().view(np.float64))


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_decoder_is_a_head_that_no_pruner_sees(module: ArithmeticReasoning) -> None:
    names = set(prunable_weights(module, BACKBONE.architecture(module.model)))
    assert len(names) == 12 and not any("expression" in name for name in names)


def test_encoder_and_decoder_learn_at_their_own_rates(module: ArithmeticReasoning) -> None:
    own = {id(weight) for weight in module.decoder.parameters()}
    rest = [weight for weight in module.parameters() if id(weight) not in own]
    groups = [{"params": [*rest, *module.decoder.parameters()], "weight_decay": 0.5}]
    made = two_rates(functools.partial(torch.optim.AdamW, lr=1e-5), groups, own=own, lr=1e-3, weight_decay=0.5)
    assert [(group["lr"], group["weight_decay"]) for group in made.param_groups] == [(1e-5, 0.5), (1e-3, 0.5)]
    assert sum(len(group["params"]) for group in made.param_groups) == len(list(module.parameters()))


def test_training_finds_the_values_and_the_rows_give_them_back(trained: Run) -> None:
    metrics = trained.metrics
    assert metrics["metric"] == "value_accuracy" and 0.05 < metrics["chance"] < 0.3 < metrics["value"]
    assert metrics["sparsity"] == pytest.approx(0.3, abs=1e-5)
    assert metrics["metrics"]["train/num_left_out"] == 0
    rows = pd.DataFrame(read_run(trained.path).predictions().to_pandas())
    for name in ("value_accuracy", "expression_accuracy", "parsed_share"):
        assert METRICS[name].value(rows) == metrics["metrics"][f"test/{name}"]
    assert metrics["metrics"]["test/parsed_share"] >= metrics["value"] >= metrics["metrics"]["test/expression_accuracy"]


def test_a_saved_model_is_evaluated_with_its_decoder(trained: Run, tmp_path: Path) -> None:
    stored = TinyLanguageBackbone(path=trained.model)
    task = functools.partial(ArithmeticReasoning, width=64)
    (found,) = evaluate_curve(stored, EmbeddedArithmetic(), task, sparsities=[0.0], folder=tmp_path, pruner=OMP)
    assert found["value"] == trained.metrics["value"]
    assert found["metrics"]["test/loss"] == pytest.approx(trained.metrics["metrics"]["test/loss"], rel=1e-4)


def test_evaluation_without_the_decoder_is_refused(trained: Run, tmp_path: Path) -> None:
    model = BACKBONE.build(num_labels=6, seed=0, head="features")
    with pytest.raises(ValueError, match="holds no expression decoder: train it first") as caught:
        ArithmeticReasoning(model, num_labels=6)
    assert "\n" not in str(caught.value)
    stored = TinyLanguageBackbone(path=trained.model).build(num_labels=7, seed=0, head="features")
    with pytest.raises(ValueError, match=r"has \(6, 64\) for expression_decoder.symbols.weight, .* ask for \(7, 64\)"):
        ArithmeticReasoning(stored, num_labels=7, width=64)


def test_calibrated_pruners_read_word_problems(tmp_path: Path) -> None:
    pruner = Pruner(ActivationNorm(), PerRow(), Unstructured(), calibration=TrainingRows(num_rows=16))
    small = EmbeddedArithmetic(num_train_rows=32, num_evaluation_rows=8)
    metrics = fit(BACKBONE, small, TASK, run=tmp_path / "run", pruner=pruner, sparsity=0.5, trainer={"max_steps": 1})
    assert metrics["sparsity"] == pytest.approx(0.5, abs=0.01)


def test_settings_out_of_range_are_refused(module: ArithmeticReasoning) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"width": 0}, "task's width=0 is no whole number"),
        ({"max_tokens": 1.5}, "task's max_tokens=1.5"),
        ({"num_labels": 3}, "task's num_labels=3 is no whole number of at least 4"),
        ({"dropout": 1.0}, "task.dropout=1.0 lies outside"),
        ({"decoder_lr": 0.0}, "task.decoder_lr=0.0 is not above 0"),
    ]
    for options, line in wrong:
        with pytest.raises(ValueError, match=line):
            ArithmeticReasoning(module.model, **{"num_labels": 6, "optimizer": ADAMW, **options})
