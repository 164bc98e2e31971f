"""GLUE: nine sentence tasks from one table; local parquet files or the hub."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from essential_sparsity.data.classification import ClassificationData
from essential_sparsity.data.from_hub import hub_rows
from essential_sparsity.data.text import TokenisedText, tokenise
from essential_sparsity.inputs import file_digest, hub_revision, suggest

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Subset:
    """What differs between the tasks: text columns, number of labels (1: regression), metric, evaluation splits."""

    text: tuple[str, ...]
    num_labels: int = 2
    metric: str = "accuracy"
    splits: tuple[str, ...] = ("validation",)


# Metrics are those of GLUE (Wang et al., ICLR 2019, table 1) where the paper names none; QQP is accuracy in the paper.
SUBSETS = {
    "cola": Subset(("sentence",), metric="matthews"),
    "mnli": Subset(("premise", "hypothesis"), num_labels=3, splits=("validation_matched", "validation_mismatched")),
    "mrpc": Subset(("sentence1", "sentence2"), metric="f1"),
    "qnli": Subset(("question", "sentence")),
    "qqp": Subset(("question1", "question2")),
    "rte": Subset(("sentence1", "sentence2")),
    "sst2": Subset(("sentence",)),
    "stsb": Subset(("sentence1", "sentence2"), num_labels=1, metric="pearson"),
    "wnli": Subset(("sentence1", "sentence2")),
}


class Glue(ClassificationData):
    """One GLUE task: trained on `train_splits`, evaluated on its validation splits (MNLI: matched first).

    `root` is a folder that holds `glue/<subset>/<split>.parquet`; without it rows come from the hub (nyu-mll/glue).
    Further options (numbers of rows, batches, cache): `ClassificationData`.
    """

    def __init__(
        self,
        subset: str = "sst2",
        *,
        root: str | Path | None = None,
        train_splits: Sequence[str] = ("train",),
        max_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if subset not in SUBSETS:
            raise ValueError(f"data.subset={subset!r} is no GLUE task{suggest(subset, SUBSETS)}")
        if not isinstance(max_length, int) or max_length < 3:
            raise ValueError(f"data.max_length={max_length!r} is too short for a text: give 3 or more")
        self.subset, self.root, self.max_length = subset, None if root is None else Path(root), max_length
        self.train_splits = tuple(train_splits)
        self.spec = SUBSETS[subset]
        self.metric, self.num_labels = self.spec.metric, self.spec.num_labels

    @property
    def folder(self) -> Path | None:
        """The local folder of parquet files, or None: the hub."""
        return None if self.root is None else self.root / "glue" / self.subset

    def check(self) -> None:
        """Check that files, columns and labels are there and in range; rows of the hub are checked by `prepare`."""
        if self.folder is None:
            return
        for split in (*self.train_splits, *self.spec.splits):
            file = self._file(split)
            schema = pq.read_schema(file)
            for column in (*self.spec.text, "label"):
                if column not in schema.names:
                    raise ValueError(f"{file} has no column {column!r}{suggest(column, schema.names)}")
            self._labels(pq.read_table(file, columns=["label"]), str(file))

    def _file(self, split: str) -> Path:
        assert self.folder is not None
        file = self.folder / f"{split}.parquet"
        if not self.folder.is_dir():
            there = [item.name for item in self.folder.parent.iterdir()] if self.folder.parent.is_dir() else []
            raise FileNotFoundError(f"data folder {str(self.folder)!r} does not exist{suggest(self.subset, there)}")
        if not file.is_file():
            there = [item.stem for item in self.folder.glob("*.parquet")]
            raise FileNotFoundError(f"{self.folder} has no {split}.parquet{suggest(split, there)}")
        return file

    def _labels(self, table: pa.Table, source: str) -> np.ndarray:
        """Give class ids as int64 or values as float32; missing or out-of-range labels are refused."""
        labels = table["label"]
        if labels.null_count:
            raise ValueError(f"{source} has {labels.null_count} rows without a label: remove them")
        values = labels.to_numpy()
        if self.num_labels == 1:
            return values.astype(np.float32)
        outside = values[(values < 0) | (values >= self.num_labels)]
        if len(outside):
            raise ValueError(
                f"{source} has label {outside[0]} outside 0 … {self.num_labels - 1} of {self.subset}: "
                "use a split with true labels (test splits of the hub have none)"
            )
        return values.astype(np.int64)

    def _read(self, split: str) -> pa.Table:
        if self.folder is not None:
            return pq.read_table(self._file(split), columns=[*self.spec.text, "label"])
        rows = hub_rows(HUB, self.subset, split=split)
        return cast(pa.Table, rows.with_format("arrow")[:]).select([*self.spec.text, "label"])

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise each split once; what the cache has is mapped into memory."""
        train = pa.concat_tables([self._read(split) for split in self.train_splits])
        evaluation = {split: self._tokenised(self._read(split), split, preprocessing) for split in self.spec.splits}
        self.select(self._tokenised(train, "+".join(self.train_splits), preprocessing), evaluation)

    def _tokenised(self, table: pa.Table, split: str, preprocessing: Any) -> TokenisedText:
        labels = self._labels(table, f"{self.subset} {split}")
        return tokenise(
            table,
            text=self.spec.text,
            labels=labels,
            preprocessing=preprocessing,
            max_length=self.max_length,
            cache=self.cache,
        )

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of each local file, or the hub's revision."""
        splits = (*self.train_splits, *self.spec.splits)
        if self.folder is None:
            return {f"{HUB}/{self.subset}": hub_revision(HUB, kind="dataset")}
        return {f"glue/{self.subset}/{split}.parquet": file_digest(self._file(split)) for split in splits}

    def needs(self) -> dict[str, Callable[[], object]]:
        """Say what is needed from the hub, and how it is brought into the local cache; nothing of local files."""
        fetch = functools.partial(hub_rows, HUB, self.subset, split=self.train_splits[0])
        return {} if self.folder is not None else {f"{HUB}/{self.subset}": fetch}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count rows from the files' metadata, or from the hub's description of the data set."""
        if self.folder is not None:
            counts = {
                split: pq.read_metadata(self._file(split)).num_rows for split in (*self.train_splits, *self.spec.splits)
            }
        else:
            from datasets import load_dataset_builder

            splits = load_dataset_builder(HUB, self.subset).info.splits or {}
            counts = {name: split.num_examples for name, split in splits.items()}
        return sum(counts[split] for split in self.train_splits), {split: counts[split] for split in self.spec.splits}
