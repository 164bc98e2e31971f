"""Where a calibrated pruner's rows come from: the run's own training rows, or plain text cut to one length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from essential_sparsity.data.batches import Batch, BatchOrder, random_permutation
from essential_sparsity.data.from_hub import hub_rows
from essential_sparsity.inputs import digest_of, file_digest, hub_revision, suggest
from essential_sparsity.seeds import derive

TOKENS = 4096
"""Tokens of a batch of plain text, at most (one row at least): large matrix products, little memory."""

NOT_INPUTS = ("labels", "row")
"""Columns of a batch that no model reads."""


def _check_counts(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"calibration.{name}={value!r} is no whole number of at least 1: give one")


# --- rows of the run's data -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingRows:
    """A seeded choice of the run's own training rows, as they are (not augmented): text or images, never evaluated."""

    num_rows: int = 128
    seed: int = 0
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_counts(num_rows=self.num_rows, batch_size=self.batch_size)

    def check(self) -> None:
        """Nothing beyond the run's data is read."""

    def inputs(self) -> dict[str, str]:
        """Give no hashes of its own: the run's data have theirs."""
        return {}

    def batches(self, preprocessing: Any, data: Any) -> list[Batch]:
        """Give batches of the chosen rows, shortest rows first, padded on the right; `data` must be prepared."""
        train = data.training_rows()
        if self.num_rows > len(train):
            raise ValueError(
                f"calibration.num_rows={self.num_rows} exceeds the {len(train)} training rows there are: ask for fewer"
            )
        chosen = random_permutation(len(train), derive(self.seed, "calibration"))[: self.num_rows]
        lengths = None if train.lengths is None else train.lengths[chosen]
        order = BatchOrder(len(chosen), self.batch_size, seed=None, lengths=lengths)
        batches = [train.batch(chosen[positions], 0) for positions in order.batches(0)]
        return [{name: value for name, value in batch.items() if name not in NOT_INPUTS} for batch in batches]

    def describe(self) -> str:
        """Name source, rows and seed."""
        return f"training rows ({self.num_rows} rows, seed {self.seed})"


# --- plain text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainText:
    """Stretches of running text, each tokenised to exactly `length` tokens (the tokenizer's special ones included).

    `path` is a parquet file with a `column` of text; without it `root` is a folder that holds `<last part of
    hub_id>/<subset>/<split>.parquet`, and without that the hub is read. A stretch starts at a row that the seed
    chooses and takes the rows after it; no row is in two stretches.
    """

    path: str | Path | None = None
    hub_id: str | None = None
    subset: str | None = None
    split: str = "train"
    root: str | Path | None = None
    column: str = "text"
    num_rows: int = 128
    length: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers and that there is a source."""
        _check_counts(num_rows=self.num_rows, length=self.length)
        if self.path is None and self.hub_id is None:
            raise ValueError("calibration has no text: give calibration.path=<parquet file> or calibration.hub_id=<id>")

    @property
    def file(self) -> Path | None:
        """The local file that is read; None: the hub."""
        if self.path is not None:
            return Path(self.path)
        if self.root is None or self.hub_id is None:
            return None
        return Path(self.root, self.hub_id.rsplit("/", 1)[-1], self.subset or "", f"{self.split}.parquet")

    @property
    def name(self) -> str:
        """Say which text it is, without the machine's folders."""
        if self.path is not None:
            return "/".join(Path(self.path).parts[-2:])
        return " ".join(part for part in (self.hub_id, self.subset, self.split) if part)

    def check(self) -> None:
        """Check that the file and its column are there; text of the hub is checked by `batches`."""
        if self.file is None:
            return
        if not self.file.is_file():
            there = [item.name for item in self.file.parent.iterdir()] if self.file.parent.is_dir() else []
            raise FileNotFoundError(
                f"calibration text {str(self.file)!r} does not exist{suggest(self.file.name, there)} "
                "(calibration.path=<parquet file> names any)"
            )
        names = pq.read_schema(self.file).names
        if self.column not in names:
            raise ValueError(f"{self.file} has no column {self.column!r}{suggest(self.column, names)}")

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of the file, or the hub's revision."""
        if self.file is None:
            assert self.hub_id is not None
            return {self.hub_id: hub_revision(self.hub_id, kind="dataset")}
        return {self.name: file_digest(self.file)}

    def needs(self) -> dict[str, Callable[[], object]]:
        """Say what is needed from the hub, and how it is brought into the local cache; nothing of local files."""
        return {} if self.file is not None else {f"{self.hub_id}/{self.subset}": self._rows}

    def batches(self, preprocessing: Any, data: Any = None) -> list[Batch]:
        """Tokenise the stretches into batches of input_ids and attention_mask [rows, length], without padding."""
        if not hasattr(preprocessing, "tokenizer"):
            raise ValueError(
                "calibration is text, but the backbone reads images: give pruner/calibration=training_rows"
            )
        if self.length > preprocessing.max_length:
            raise ValueError(
                f"calibration.length={self.length} exceeds the model's longest sequence, {preprocessing.max_length}: "
                "give at most that"
            )
        stretches = self._stretches(self._texts(), preprocessing.tokenizer)
        found = [ids for _, ids in zip(range(self.num_rows), stretches)]
        if len(found) < self.num_rows:
            raise ValueError(
                f"{self.name} holds {len(found)} stretches of {self.length} tokens, calibration.num_rows asks for "
                f"{self.num_rows}: ask for fewer or shorter ones (calibration.length)"
            )
        ids = torch.from_numpy(np.array(found, dtype=np.int64))
        return [
            {"input_ids": part, "attention_mask": torch.ones_like(part)}
            for part in ids.split(max(1, TOKENS // self.length))
        ]

    def _texts(self) -> Sequence[str]:
        """Read the rows that are not blank."""
        if self.file is not None:
            table = pq.read_table(self.file, columns=[self.column])
        else:
            table = self._from_hub()
        return [text for text in table[self.column].to_pylist() if text and text.strip()]

    def _from_hub(self) -> pa.Table:
        return cast(pa.Table, self._rows().with_format("arrow")[:]).select([self.column])

    def _rows(self) -> Any:
        remedy = "calibration.path=<parquet file>"
        return hub_rows(str(self.hub_id), self.subset, split=self.split, remedy=remedy)

    def _stretches(self, texts: Sequence[str], tokenizer: Any) -> Iterator[list[int]]:
        """Go through the rows in the seed's order and give what starts there, where enough untouched text follows."""
        taken = np.zeros(len(texts) + 1, dtype=bool)
        taken[-1] = True
        for start in random_permutation(len(texts), derive(self.seed, "calibration")):
            free = int(taken[start:].argmax())  # rows from here to the next that is taken
            stop, ids = start, []
            while len(ids) < self.length and stop < start + free:
                missing, letters = self.length - len(ids), 0
                while stop < start + free and letters < 8 * missing:
                    letters += len(texts[stop])
                    stop += 1
                ids = tokenizer("\n".join(texts[start:stop]), truncation=True, max_length=self.length)["input_ids"]
            if len(ids) == self.length:
                taken[start:stop] = True
                yield ids

    def describe(self) -> str:
        """Name source, rows, length and seed."""
        return f"{self.name} ({self.num_rows} rows of {self.length} tokens, seed {self.seed})"


@dataclass(frozen=True)
class EmbeddedPlainText(PlainText):
    """Stretches of the manual that Python itself carries: no file and no hub, for tests and scale=tiny."""

    hub_id: str | None = "pydoc_data.topics"
    num_rows: int = 8
    length: int = 32

    def inputs(self) -> dict[str, str]:
        """Give the hash of the text."""
        return {self.name: digest_of(*self._texts())}

    def _texts(self) -> Sequence[str]:
        """Give the paragraphs."""
        from pydoc_data.topics import topics

        return [part for key in sorted(topics) for part in topics[key].split("\n\n") if part.strip()]
