"""What keeps a large model in memory once: its file's number format, its file in place of copies, several devices."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from essential_sparsity import preparation
from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.calibration import PlainText as CalibrationText
from essential_sparsity.data.multiple_choice import EmbeddedQuestions
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.preparation import as_they_are, refuse_off_loaded
from essential_sparsity.pruning import ActivationNorm, PerRow, Pruner, SparseGPT, prunable_weights
from essential_sparsity.runs import read_runs
from essential_sparsity.tasks.multiple_choice import MultipleChoice

NEEDS_ACCELERATE = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not there")
QUESTIONS: dict[str, Any] = {"num_shots": 1, "num_evaluation_rows": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bf16 with a tokenizer, as Vicuna's files are."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large") / "llama"
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=4096, num_attention_heads=2, num_key_value_heads=2, **shape)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    TinyLanguageBackbone().tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> CalibrationText:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("text") / "text.parquet"
    pq.write_table(pa.table({"text": ["the value of a name in a class is an object of that module"] * 80}), path)
    return CalibrationText(path=path, num_rows=4, length=24)


@pytest.mark.parametrize("kind", ["omp", "wanda", "sparsegpt"])
def test_a_llama_in_bf16_has_a_curve_under_each_pruner(kind: str, folder: Path, text: Any, tmp_path: Path) -> None:
    pruner: Any = {
        "omp": Pruner(),
        "wanda": Pruner(ActivationNorm(), PerRow(), calibration=text),
        "sparsegpt": SparseGPT(calibration=text),
    }[kind]
    backbone, data = LanguageBackbone(path=folder), EmbeddedQuestions(**QUESTIONS)
    levels = evaluate_curve(
        backbone, data, MultipleChoice, sparsities=["0.0", "0.4", "0.7"], folder=tmp_path, pruner=pruner
    )
    assert [level["sparsity"] for level in levels] == pytest.approx([0.0, 0.4, 0.7], abs=0.02)  # per row of 32
    assert len({run.predictions()["log_likelihood_a"].to_pylist()[0] for run in read_runs(tmp_path)}) == 3


def test_a_large_model_is_read_from_its_file_again_and_gives_the_same_levels(
    folder: Path, text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name, most in (("copied", 1 << 30), ("read", 0)):
        monkeypatch.setattr(preparation, "COPIED", most)
        levels = evaluate_curve(
            LanguageBackbone(path=folder), EmbeddedQuestions(**QUESTIONS), MultipleChoice,
            sparsities=["0.0", "0.3", "0.6"], folder=tmp_path / name, pruner=SparseGPT(calibration=text),
        )  # fmt: skip
        found.append([level["metrics"] for level in levels])
    assert found[0] == found[1]


def test_weights_as_they_are_come_from_the_file_only_where_it_has_them(folder: Path, monkeypatch: Any) -> None:
    backbone = LanguageBackbone(path=folder)
    model = backbone.build(num_labels=0, seed=0, head="causal_lm", require_head=True, dtype=torch.bfloat16)
    architecture = backbone.architecture(model)
    weights = {name: weight.detach() for name, weight in prunable_weights(model, architecture).items()}
    monkeypatch.setattr(preparation, "COPIED", 0)
    stored = as_they_are(weights, architecture, folder)
    assert not isinstance(stored, dict) and len(stored) == len(weights) == len(list(stored))
    assert all(torch.equal(stored[name], weight) for name, weight in weights.items())
    name = next(iter(weights))
    other = {**weights, name: torch.zeros(2, 2, dtype=torch.bfloat16)}
    copied = as_they_are(other, architecture, folder)
    assert isinstance(copied, dict) and torch.equal(copied[name], other[name]) and copied[name] is not other[name]
    assert isinstance(as_they_are(weights, architecture, None), dict)


@NEEDS_ACCELERATE
def test_a_spread_model_gives_the_same_answers(folder: Path, tmp_path: Path) -> None:
    found = []
    for device_map in (None, "cpu"):
        backbone = LanguageBackbone(path=folder, device_map=device_map)
        backbone.check()
        levels = evaluate_curve(
            backbone, EmbeddedQuestions(**QUESTIONS), MultipleChoice, sparsities=["0.0", "0.5"],
            folder=tmp_path / str(device_map), pruner=Pruner(), device="cpu",
        )  # fmt: skip
        found.append([level["metrics"] for level in levels])
    assert found[0] == found[1]


def test_spreading_needs_accelerate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"backbone\.device_map=auto needs accelerate: pip install accelerate"):
        LanguageBackbone(path=folder, device_map="auto").check()


def test_off_loaded_weights_are_not_pruned_in_memory() -> None:
    model = nn.Linear(2, 2, device="meta")
    refuse_off_loaded(model, [0])
    with pytest.raises(ValueError, match=r"2 weights are off-loaded .* prunes the files, then evaluate those"):
        refuse_off_loaded(model, [0, 0.5])
    refuse_off_loaded(nn.Linear(2, 2), [0.5])


def test_an_untrained_decoder_answers_by_chance(tmp_path: Path) -> None:
    backbone = dataclasses.replace(TinyLanguageBackbone(family="opt"), pretrained=False)
    (level,) = evaluate_curve(
        backbone, EmbeddedQuestions(num_shots=0), MultipleChoice, sparsities=["0.0"], folder=tmp_path, pruner=Pruner()
    )
    assert level["value"] < 0.5
