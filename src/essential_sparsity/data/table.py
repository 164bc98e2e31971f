"""Your own labelled texts: csv, parquet or jsonl files with one or two text columns and a label column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.data.classification import ClassificationData
from essential_sparsity.data.text import TokenisedText, tokenise
from essential_sparsity.inputs import file_digest, suggest

SUFFIXES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")


METRICS_OF_CLASSES = ("accuracy", "matthews", "f1")
METRICS_OF_VALUES = ("pearson", "spearman")


class Table(ClassificationData):
    """Texts of one's own: `train` and `validation` files, `text` column names (one or two), a `label` column.

    Labels are strings (classes in alphabetical order) or whole numbers from 0. `num_labels=1` makes it a regression on
    numbers. Without a `validation` file, `num_holdout_rows` training rows are evaluated on instead.
    """

    def __init__(
        self,
        *,
        train: str | Path,
        text: str | Sequence[str],
        label: str,
        validation: str | Path | None = None,
        num_labels: int | None = None,
        metric: str | None = None,
        max_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.train, self.validation = Path(train), None if validation is None else Path(validation)
        self.text = (text,) if isinstance(text, str) else tuple(text)
        if not 1 <= len(self.text) <= 2:
            raise ValueError(f"data.text={list(self.text)} names {len(self.text)} columns: give one or two")
        if num_labels is not None and num_labels < 1:
            raise ValueError(
                f"data.num_labels={num_labels} is no number of classes: give 2 or more, or 1 for regression"
            )
        self.metric = metric or ("pearson" if num_labels == 1 else "accuracy")
        if self.metric not in METRICS:
            raise ValueError(f"data.metric={metric!r} is no metric{suggest(self.metric, METRICS)}")
        if self.validation is None and not self._num_holdout:
            raise ValueError("data.validation is not given: name a file, or give data.num_holdout_rows")
        self.label, self.max_length = label, max_length
        self._asked_labels, self.classes, self._counts = num_labels, (), (0, 0)

    # --- reading ---

    def check(self) -> None:
        """Check that the files, their columns and labels are there; reads the label columns alone where it can."""
        train = read_columns(self.train, [*self.text, self.label])
        self._learn_labels(train[self.label].combine_chunks())
        fitting = METRICS_OF_VALUES if self.num_labels == 1 else METRICS_OF_CLASSES
        if self.metric not in fitting or (self.metric == "f1" and self.num_labels != 2):
            kind = "values" if self.num_labels == 1 else f"{self.num_labels} classes"
            fits = [name for name in fitting if name != "f1" or self.num_labels == 2]
            raise ValueError(f"data.metric={self.metric} does not fit {kind}: choose one of {', '.join(fits)}")
        tables = [train]
        self._labels(train, self.train)
        if self.validation is not None:
            tables.append(read_columns(self.validation, [*self.text, self.label]))
            self._labels(tables[1], self.validation)
        self._counts = (len(tables[0]), len(tables[-1]) if self.validation is not None else 0)

    def _learn_labels(self, column: pa.Array) -> None:
        """Decide from the training labels what the classes are."""
        if self._asked_labels == 1:
            self.num_labels = 1
        elif pa.types.is_integer(column.type):
            self.num_labels = self._asked_labels or max(value or 0 for value in column.to_pylist()) + 1
        elif pa.types.is_floating(column.type):
            raise ValueError(
                f"{self.train}: column {self.label!r} holds fractions: give data.num_labels=1 for regression, "
                "or whole numbers or strings for classes"
            )
        else:
            self.classes = tuple(
                sorted({str(value) for value in column.unique().to_pylist() if value not in (None, "")})
            )
            self.num_labels = len(self.classes)
            if self._asked_labels not in (None, self.num_labels):
                raise ValueError(
                    f"{self.train} has {self.num_labels} classes in {self.label!r}, data.num_labels asks for "
                    f"{self._asked_labels}: leave data.num_labels out"
                )
        if self._asked_labels != 1 and self.num_labels < 2:
            raise ValueError(f"{self.train} has one class in column {self.label!r}: two are the least")

    def _labels(self, table: pa.Table, file: Path) -> np.ndarray:
        """Give class ids (int64) or values (float32) of a table's rows, in order."""
        column = table[self.label]
        values = column.to_pylist()
        missing = sum(value is None or value == "" for value in values)
        if missing:
            raise ValueError(f"{file} has {missing} rows without a label in {self.label!r}: remove them")
        if self.num_labels == 1:
            return self._numbers(column, file)
        if self.classes:
            ids = {name: index for index, name in enumerate(self.classes)}
            unseen = next((value for value in values if str(value) not in ids), None)
            if unseen is not None:
                raise ValueError(f"{file} has label {unseen!r}, which no training row has{suggest(str(unseen), ids)}")
            return np.array([ids[str(value)] for value in values], np.int64)
        outside = [value for value in values if not isinstance(value, int) or not 0 <= value < self.num_labels]
        if outside:
            raise ValueError(
                f"{file} has label {outside[0]!r} outside 0 … {self.num_labels - 1}: labels are whole numbers from 0 "
                "(or give data.num_labels)"
            )
        return np.array(values, np.int64)

    def _numbers(self, column: pa.ChunkedArray, file: Path) -> np.ndarray:
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise ValueError(f"{file}: column {self.label!r} holds no numbers: leave data.num_labels=1 out for classes")
        values = column.to_numpy().astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{file}: column {self.label!r} holds NaN or infinity: remove those rows")
        return values

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise both files once."""
        if not self.num_labels:
            self.check()
        evaluation = {}
        if self.validation is not None:
            evaluation["validation"] = self._tokenised(self.validation, preprocessing)
        self.select(self._tokenised(self.train, preprocessing), evaluation)

    def _tokenised(self, file: Path, preprocessing: Any) -> TokenisedText:
        table = read_columns(file, [*self.text, self.label])
        return tokenise(
            table,
            text=self.text,
            labels=self._labels(table, file),
            preprocessing=preprocessing,
            max_length=self.max_length,
            cache=self.cache,
        )

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of both files."""
        files = {"train": self.train, "validation": self.validation}
        return {f"{role}: {file.name}": file_digest(file) for role, file in files.items() if file is not None}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Give the rows that `check` counted."""
        if not self.num_labels:
            self.check()
        train, validation = self._counts
        return train, {} if self.validation is None else {"validation": validation}


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a csv, tsv, parquet or jsonl file; a missing file, column or text is one line that says so."""
    if not file.is_file():
        siblings = [item.name for item in file.parent.iterdir()] if file.parent.is_dir() else []
        raise FileNotFoundError(f"table {str(file)!r} does not exist{suggest(file.name, siblings)}")
    table = _read(file)
    for column in columns:
        if column not in table.column_names:
            raise ValueError(f"{file} has no column {column!r}{suggest(column, table.column_names)}")
    table = table.select(list(columns))
    if not len(table):
        raise ValueError(f"{file} has no rows: give a table with some")
    for column in columns[:-1]:
        if table[column].null_count:
            raise ValueError(f"{file} has {table[column].null_count} rows without text in {column!r}: remove them")
    return table


def _read(file: Path) -> pa.Table:
    from pyarrow import csv, json

    if file.suffix not in SUFFIXES:
        raise ValueError(f"table {str(file)!r} ends in {file.suffix or 'nothing'!r}: give one of {', '.join(SUFFIXES)}")
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        if file.suffix in (".csv", ".tsv"):
            separator = "\t" if file.suffix == ".tsv" else ","
            keep_empty = csv.ConvertOptions(strings_can_be_null=False)
            parse = csv.ParseOptions(delimiter=separator, newlines_in_values=True)
            return csv.read_csv(file, parse_options=parse, convert_options=keep_empty)
        return json.read_json(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error
