"""Tables of one's own: csv, parquet, jsonl; each mistake is one line that names it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from essential_sparsity.backbones.language import TextPreprocessing
from essential_sparsity.data.table import Table

TRAIN = [("is it raining", "the street is wet, so yes", "yes"), ("is it dark", "the sun shines", "no")] * 3
VALIDATION = [("is it cold", "there is snow", "yes")]


def write(
    path: Path, rows: list[tuple[Any, ...]], columns: tuple[str, ...] = ("question", "passage", "answer")
) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [row[index] for row in rows] for index, name in enumerate(columns)}), path)
    elif path.suffix == ".csv":
        lines = [",".join(json.dumps(str(value)) for value in row) for row in [columns, *rows]]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    return path


def table(
    folder: Path, *, suffix: str = ".csv", train: Any = TRAIN, validation: Any = VALIDATION, **options: Any
) -> Table:
    return Table(
        **{
            "train": write(folder / f"a{suffix}", train),
            "validation": write(folder / f"b{suffix}", validation),
            "text": ["question", "passage"],
            "label": "answer",
            "cache": folder / "cache",
            **options,
        }
    )


def labels_of(data: Table) -> list[Any]:
    batches = data.evaluation_dataloaders()["validation"]
    rows = {row: label for batch in batches for row, label in zip(batch["row"].tolist(), batch["labels"].tolist())}
    return [rows[row] for row in sorted(rows)]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_three_formats_give_the_same_rows(suffix: str, tmp_path: Path, tiny: TextPreprocessing) -> None:
    data = table(tmp_path, suffix=suffix, validation=[*VALIDATION, ("is it late", "it is noon", "no")])
    data.check()
    assert (data.num_labels, data.classes, data.metric) == (2, ("no", "yes"), "accuracy")
    assert (data.num_train_rows, data.evaluation_rows) == (6, {"validation": 2})
    data.prepare(tiny)
    assert labels_of(data) == [1, 0]
    batch = next(iter(data.train_dataloader()))
    assert tiny.tokenizer.decode(batch["input_ids"][0]).count("[SEP]") == 2  # a pair


def test_one_text_column_may_be_a_plain_name(tmp_path: Path, tiny: TextPreprocessing) -> None:
    data = table(tmp_path, text="question")
    data.check()
    data.prepare(tiny)
    assert labels_of(data) == [1]


def test_whole_numbers_are_classes_from_zero(tmp_path: Path, tiny: TextPreprocessing) -> None:
    data = table(tmp_path, train=[("a", "b", 2), ("c", "d", 0)], validation=[("e", "f", 1)], suffix=".parquet")
    data.check()
    data.prepare(tiny)
    assert (data.num_labels, labels_of(data)) == (3, [1])


def test_one_label_is_a_regression(tmp_path: Path, tiny: TextPreprocessing) -> None:
    rows: dict[str, Any] = {"train": [("a", "b", 0.5), ("c", "d", 2.0)], "validation": [("e", "f", 1.25)]}
    data = table(tmp_path, num_labels=1, **rows)
    data.check()
    data.prepare(tiny)
    assert (data.num_labels, data.metric, labels_of(data)) == (1, "pearson", [1.25])


def test_a_holdout_stands_in_for_a_validation_file(tmp_path: Path, tiny: TextPreprocessing) -> None:
    rows = [(f"question {index}", "passage", "yes" if index % 2 else "no") for index in range(8)]
    file = write(tmp_path / "a.csv", rows)
    data = Table(train=file, text=["question", "passage"], label="answer", num_holdout_rows=3, cache=tmp_path)
    data.check()
    data.prepare(tiny)
    assert (data.num_train_rows, data.evaluation_rows) == (5, {"holdout": 3})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"text": ["question", "pasage"]}, r"a\.csv has no column 'pasage': did you mean 'passage'\?"),
        ({"label": "anwser"}, r"has no column 'anwser': did you mean 'answer'\?"),
        ({"text": ["question", "passage", "answer"]}, "names 3 columns: give one or two"),
        ({"validation": [("a", "b", "maybe")]}, r"b\.csv has label 'maybe', which no training row has"),
        ({"validation": [("a", "b", "")]}, "1 rows without a label"),
        ({"train": [("a", "b", 0), ("c", "d", 1)], "validation": [("a", "b", 2)]}, r"label 2 outside 0 … 1"),
        ({"train": [("a", "b", -1), ("c", "d", 1)]}, r"label -1 outside 0 … 1"),
        ({"train": [("a", "b", 0.5), ("c", "d", 1.5)]}, "holds fractions: give data.num_labels=1"),
        ({"train": [("a", "b", "yes")]}, "has one class"),
        ({"num_labels": 1}, "holds no numbers"),
        ({"num_labels": 3}, "asks for 3: leave data.num_labels out"),
        ({"num_labels": 0}, "no number of classes"),
        ({"metric": "acuracy"}, r"data.metric='acuracy' is no metric: did you mean 'accuracy'\?"),
        ({"train": []}, "has no rows"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        table(tmp_path, **change).check()
    assert "\n" not in str(caught.value)


def test_missing_files_texts_and_formats_are_named(tmp_path: Path) -> None:
    good = table(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"c\.csv' does not exist"):
        Table(train=tmp_path / "c.csv", validation=good.validation, text="question", label="answer").check()
    (tmp_path / "d.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"ends in '\.xlsx': give one of"):
        Table(train=tmp_path / "d.xlsx", validation=good.validation, text="question", label="answer").check()
    (tmp_path / "e.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        Table(train=tmp_path / "e.parquet", validation=good.validation, text="question", label="answer").check()
    with pytest.raises(ValueError, match="1 rows without text in 'passage'"):
        table(tmp_path, suffix=".parquet", train=[("a", None, "yes"), ("b", "c", "no")]).check()
    with pytest.raises(ValueError, match=r"name a file, or give data.num_holdout_rows"):
        Table(train=good.train, text="question", label="answer")


@pytest.mark.parametrize("metric", ["perplexity", "pearson", "squad_f1"])
def test_a_metric_that_does_not_fit_classes_is_refused_before_training(metric, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("text,label\nfine,0\nbad,1\ngood,0\nawful,1\n")
    data = Table(train=tmp_path / "a.csv", text="text", label="label", validation=tmp_path / "b.csv", metric=metric)
    with pytest.raises(ValueError, match=f"data.metric={metric} does not fit 2 classes: choose one of accuracy"):
        data.check()
