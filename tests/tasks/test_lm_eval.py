"""lm-eval beside our own MMLU: the same prompts, likelihoods and letters; any of its tasks through itself."""

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers.pre_tokenizers import ByteLevel

from essential_sparsity.backbones.new_opt import NewOpt
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.byte_pairs import BytePairs
from essential_sparsity.data.harness import HarnessRows
from essential_sparsity.data.mmlu import asked, introduction
from essential_sparsity.data.multiple_choice import Mmlu
from essential_sparsity.evaluation import evaluate_curve
from essential_sparsity.predictions import predict
from essential_sparsity.pruning import Pruner
from essential_sparsity.runs import read_runs
from essential_sparsity.tasks.lm_eval import LmEval, numbers, row_scores
from essential_sparsity.tasks.multiple_choice import MultipleChoice

NEEDS_HARNESS = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval (extra llm) is not installed"
)
QUIET = pytest.mark.filterwarnings("ignore")  # its warnings are its own


def harness(name: str) -> Any:
    return importlib.import_module(f"lm_eval.{name}")


def mmlu_task(subject: str, folder: Path, *, num_shots: int) -> Any:
    """Give lm-eval's own task of a subject, its rows read from local files."""
    files = Path(harness("tasks").__file__).parent / "mmlu" / "default"
    shared = yaml.safe_load((files / "_default_template_yaml").read_text())
    own = yaml.safe_load((files / f"mmlu_{subject}.yaml").read_text())
    data_files = {split: str(folder / f"{split}.parquet") for split in ("test", "dev")}
    config = {key: value for key, value in {**shared, **own}.items() if key not in ("include", "tag", "dataset_name")}
    config |= {"dataset_path": "parquet", "dataset_kwargs": {"data_files": data_files}, "num_fewshot": num_shots}
    return harness("api.task").ConfigurableTask(config=config)


@pytest.fixture
def model(es_data: Path) -> tuple[Any, Any]:
    """Give a small OPT whose letters differ clearly, and its preprocessing."""
    config = {"max_position_embeddings": 700}
    backbone = NewOpt(size="tiny", vocabulary=BytePairs(root=es_data, size=8192), dropout=0.0, config=config)
    model = backbone.build(num_labels=0, seed=0, head="causal_lm").eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    return model, backbone.preprocessing()


@QUIET
@NEEDS_HARNESS
@pytest.mark.real
@pytest.mark.parametrize("num_shots", [5, 0])
def test_200_questions_have_lm_eval_s_prompts_likelihoods_and_letters(
    num_shots: int, model: Any, es_data: Path, tmp_path: Path
) -> None:
    decoder, preprocessing = model
    rows = pq.read_table(es_data / "mmlu" / "test.parquet").to_pylist()
    subjects = ["abstract_algebra", "high_school_us_history", "machine_learning", "moral_scenarios"]
    chosen = [row for name in subjects for row in [row for row in rows if row["subject"] == name][:50]]
    dev = [row for row in pq.read_table(es_data / "mmlu" / "dev.parquet").to_pylist() if row["subject"] in subjects]
    for name in subjects:
        (tmp_path / name / "mmlu").mkdir(parents=True)
        for split, table in (("test", chosen), ("dev", dev)):
            own = pa.Table.from_pylist([row for row in table if row["subject"] == name])
            pq.write_table(own, tmp_path / name / "mmlu" / f"{split}.parquet")

    wrapped = harness("models.huggingface").HFLM(
        pretrained=decoder, tokenizer=preprocessing.tokenizer, batch_size=16, max_length=preprocessing.max_length
    )
    num_truncated = 0
    for name in subjects:
        data = Mmlu(root=tmp_path / name, num_shots=num_shots, cache=tmp_path / "cache")
        data.prepare(preprocessing)
        ours = predict(MultipleChoice(decoder), data.evaluation_dataloaders())["test"]
        task = mmlu_task(name, tmp_path / name / "mmlu", num_shots=num_shots)
        task.build_all_requests(rank=0, world_size=1)
        with torch.no_grad():
            theirs = np.array([found[0] for found in wrapped.loglikelihood(task.instances, disable_tqdm=True)])
        shots = [(row["question"], row["choices"], row["answer"]) for row in dev if row["subject"] == name][:num_shots]
        wanted = [introduction(name, shots) + asked(row["question"], row["choices"]) for row in chosen]
        prompts = [request.args[0] for request in task.instances[::4]]
        assert prompts == [text for text, row in zip(wanted, chosen, strict=True) if row["subject"] == name]
        likelihoods = np.stack([ours[f"log_likelihood_{letter}"] for letter in "abcd"], axis=1)
        assert np.abs(likelihoods - theirs.reshape(-1, 4)).max() < 1e-4
        assert (ours["prediction"] == theirs.reshape(-1, 4).argmax(1)).all() and len(prompts) == 50
        num_truncated += int(ours["truncated"].sum())
    assert (num_truncated > 0) == (num_shots == 5)  # long prompts are cut as lm-eval cuts them


@QUIET
@NEEDS_HARNESS
def test_a_task_of_lm_eval_runs_on_the_pruned_model(tmp_path: Path) -> None:
    rows = [{"question": f"what is {i}", "choices": ["a", "b"], "answer": i % 2} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = {
        "task": "own_rows", "dataset_path": "parquet", "test_split": "test", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.parquet")}}, "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own_rows.yaml").write_text(yaml.safe_dump(config))
    path = str(tmp_path / "tasks")

    def task(model: Any, **_: Any) -> LmEval:
        return LmEval(model, tasks=["own_rows"], include_path=path, batch_size=4)

    task.head = "causal_lm"  # type: ignore[attr-defined]
    alphabet = sorted(ByteLevel.alphabet())
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(alphabet)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    backbone = NewOpt(size="tiny", vocabulary=BytePairs(path=tmp_path), dropout=0.0)
    levels = evaluate_curve(
        backbone, HarnessRows(["own_rows"], include_path=path), task, sparsities=["0.0", "0.5"],
        folder=tmp_path / "runs", pruner=Pruner(), record={"config": {"name": "harness"}},
    )  # fmt: skip
    for level in levels:
        assert level["metric"] == "score" and level["num_rows"] == 12
        assert level["value"] == pytest.approx(level["metrics"]["lm_eval/own_rows/acc,none"])
    assert all("score" in run.predictions().column_names for run in read_runs(tmp_path / "runs"))
    with pytest.raises(
        ValueError, match=r"task\.tasks names 'own_row', which lm-eval has not: did you mean 'own_rows'"
    ):
        HarnessRows(["own_row"], include_path=path).check()


def test_where_lm_eval_is_missing_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (HarnessRows(["mmlu"]).check, HarnessRows(["mmlu"]).inputs):
        with pytest.raises(
            ValueError, match=r"task=lm_eval needs lm-eval, an extra: pip install 'essential-sparsity\[llm\]'"
        ):
            ask()


def test_what_lm_eval_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=r"task\.tasks=\[\] names no task of lm-eval"):
        HarnessRows([]).check()
    with pytest.raises(ValueError, match="tokenizer ends each text, so nothing can follow"):
        LmEval(torch.nn.Linear(1, 1), tasks=["mmlu"]).bind(TinyLanguageBackbone(family="opt").preprocessing())
    with pytest.raises(ValueError, match="task=lm_eval trains nothing"):
        LmEval(torch.nn.Linear(1, 1), tasks=[]).configure_optimizers()


def test_scores_of_rows_are_those_whose_mean_lm_eval_reports() -> None:
    def row(acc: float, words: Any, kind: str = "none") -> dict[str, Any]:
        return {"filter": kind, "metrics": ["words", "acc"], "acc": acc, "words": words}

    samples = {"t": [row(1.0, (-3.0, 2)), row(0.0, (-1.0, 1)), row(1.0, (0.0, 1), kind="strict")]}
    results = {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "words,none": 4.0, "alias": "t"}}
    better = {"t": {"acc": True, "words": False}}
    assert row_scores(samples, better, results, None)["t"].tolist() == [1.0, 0.0]
    with pytest.raises(
        ValueError, match=r"task\.metric=words is no mean over the rows of lm-eval's t: choose one of acc"
    ):
        row_scores(samples, better, results, "words")
    with pytest.raises(ValueError, match="it has none, choose another task"):
        row_scores(samples, {}, results, None)
    assert numbers(results) == {"lm_eval/t/acc,none": 0.5, "lm_eval/t/words,none": 4.0}
