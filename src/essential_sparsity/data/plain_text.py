"""Text for decoders: blocks of a corpus to train on, and the likelihood of a whole text by strided windows.

Legend: R rows (blocks or windows) of a batch, L tokens of the longest row, M predicted tokens of the batch.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as pq
import torch

from essential_sparsity.data.batches import Batch
from essential_sparsity.data.blocks import HELD_OUT, BlockData, BlockRows, Blocks
from essential_sparsity.data.corpus import Corpus, Documents
from essential_sparsity.data.from_hub import hub_rows
from essential_sparsity.data.tokens import encode, leading_ids
from essential_sparsity.data.zero_shot import ZeroShotData, hub_table
from essential_sparsity.inputs import (
    cache_folder,
    cached_folder,
    digest_of,
    file_digest,
    hub_revision,
    load_arrays,
    row_hashes,
    suggest,
)

FORMAT = 1
"""Raised when the cached files' meaning changes."""


def predicted(ids: np.ndarray, inside: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Give (positions in the flattened ids, labels) of the tokens to be predicted: `inside` [R, L] marks them.

    A token is predicted at the place before it, so no row's first token is among them.
    """
    in_batch, columns = np.nonzero(inside)
    return torch.from_numpy(in_batch * ids.shape[1] + columns - 1), torch.from_numpy(ids[in_batch, columns])


# --- windows ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """A text as windows of `max_length` tokens, each `stride` tokens after the last: rows of an evaluation.

    Every token but the first is predicted once, in the first window that reaches it, so with the longest context that
    there is (the convention of WikiText, as transformers documents it).
    """

    ids: np.ndarray  # the whole text
    max_length: int
    stride: int
    pad_id: int

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each window starts: int64 [windows]."""
        return np.arange(0, max(len(self.ids) - self.max_length, 0) + self.stride, self.stride, dtype=np.int64)

    @property
    def ends(self) -> np.ndarray:
        """Where each window ends: int64 [windows]."""
        return np.minimum(self.starts + self.max_length, len(self.ids))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window."""
        return self.ends - self.starts

    @property
    def labels(self) -> np.ndarray:
        """None: zeros."""
        return np.zeros(len(self.starts), np.int64)

    @property
    def content(self) -> np.ndarray:
        """Hash (uint64) of each window."""
        return row_hashes(bytes(self.ids[start:end]) for start, end in zip(self.starts, self.ends, strict=True))

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Give the windows as `input_ids` [R, L], padded on the right, `positions` and `labels` [M], and `row`."""
        rows = np.asarray(rows, np.int64)
        starts, ends = self.starts[rows, None], self.ends[rows, None]
        before = np.where(rows > 0, self.ends[rows - 1], 1)[:, None]  # tokens that earlier windows predict
        places = starts + np.arange((ends - starts).max())
        ids = np.where(places < ends, self.ids[np.minimum(places, len(self.ids) - 1)], self.pad_id).astype(np.int64)
        positions, labels = predicted(ids, (places >= before) & (places < ends))
        return {
            "input_ids": torch.from_numpy(ids),
            "positions": positions,
            "labels": labels,
            "row": torch.from_numpy(rows),
        }


def windows_of(ids: np.ndarray, preprocessing: Any, *, max_length: int | None, stride: int | None) -> Windows:
    """Cut a text into windows of `max_length` tokens (None: the model's longest), each half of that after the last.

    Raises ValueError where the model takes fewer tokens, where a stride would leave tokens without any context, and
    where there is nothing to predict.
    """
    longest = preprocessing.max_length
    length = longest if max_length is None else max_length
    if length > longest:
        raise ValueError(
            f"data.max_length={length} exceeds the {longest} tokens that the model takes: give at most that"
        )
    step = max(1, length // 2) if stride is None else stride
    if isinstance(step, bool) or not isinstance(step, int) or not 1 <= step < length:
        raise ValueError(
            f"data.stride={step!r} lies outside 1 … {length - 1}: each window but the first needs a token of context"
        )
    if len(ids) < 2:
        raise ValueError(f"the text has {len(ids)} tokens, so that there is nothing to predict: give a longer text")
    return Windows(ids, length, step, preprocessing.pad_id)


# --- training on a corpus ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separated:
    """A corpus in which every row of text ends in a separator, so that a decoder sees where paragraphs end."""

    corpus: Corpus
    separator: str

    def check(self) -> None:
        """Check the corpus."""
        self.corpus.check()

    def inputs(self) -> dict[str, str]:
        """Give the corpus's hashes."""
        return self.corpus.inputs()

    def splits(self) -> Sequence[str]:
        """Name the corpus's splits."""
        return self.corpus.splits()

    def digest(self, split: str) -> str:
        """Hash the corpus's hash and the separator."""
        return digest_of(self.corpus.digest(split), self.separator)

    def documents(self, split: str) -> Documents:
        """Read the documents of a split."""
        found = self.corpus.documents(split)
        ends = [pa.scalar(text, pa.large_string()) for text in ("", self.separator)]
        texts = compute.call_function("binary_join_element_wise", [found.texts.fill_null(""), *ends])
        return Documents(cast(pa.ChunkedArray, texts), found.offsets)


@dataclass(frozen=True)
class CausalRows(BlockRows):
    """Blocks whose every token is predicted; `first` is put before each, as the tokenizer puts it before a text."""

    first: tuple[int, ...] = ()

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Give `input_ids` [R, L], `positions` and `labels` [M] of all tokens that have one before them, `row`."""
        rows = np.asarray(rows, np.int64)
        tokens = self.blocks.read(rows)
        ids = np.concatenate([np.tile(np.array(self.first, np.int64), (len(rows), 1)), tokens], axis=1)
        inside = np.zeros(ids.shape, bool)
        inside[:, max(1, len(self.first)) :] = True
        positions, labels = predicted(ids, inside)
        return {
            "input_ids": torch.from_numpy(ids),
            "positions": positions,
            "labels": labels,
            "row": torch.from_numpy(rows),
        }


class PlainText(BlockData):
    """Training on blocks of a corpus, evaluation by the perplexity of its held-out text in strided windows.

    Rows of the corpus end in `separator`; blocks begin with what the tokenizer puts before a text. Windows are of
    `max_length` tokens (None: `block_length`), `stride` apart (None: half of that). Further options: `BlockData`.
    """

    metric = "perplexity"
    special_tokens = 0

    def __init__(
        self,
        corpus: Corpus,
        *,
        separator: str = "\n",
        max_length: int | None = None,
        stride: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(Separated(corpus, separator), **options)
        self.max_length, self.stride = max_length, stride

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise the corpus once, cut training documents into blocks, and the others' text into windows."""
        if not hasattr(preprocessing, "tokenizer"):
            raise ValueError("these data are text, but the backbone reads images: choose a decoder, as opt_new")
        first = leading_ids(preprocessing.tokenizer)
        self.special_tokens = len(first)
        train, held_out = self.chosen_blocks(preprocessing)
        length = self.block_length if self.max_length is None else self.max_length
        text = np.concatenate([np.array(first, held_out.tokens.ids.dtype), whole(held_out)])
        windows = windows_of(text, preprocessing, max_length=length, stride=self.stride)
        self.select(CausalRows(train, preprocessing.tokenizer, tuple(first)), {HELD_OUT: windows})

    def rows(self, blocks: Blocks, tokenizer: Any, *, train: bool) -> CausalRows:
        """Give blocks as rows."""
        return CausalRows(blocks, tokenizer, tuple(leading_ids(tokenizer)))

    def num_tokens(self) -> tuple[int, int]:
        """Count the tokens of one epoch and of all evaluation windows."""
        windows = [part.lengths for part in self._evaluation.values()]
        read = sum(len(part) * self.block_length for part in self._evaluation.values() if part.lengths is None)
        return len(self._prepared()) * self.block_length, read + sum(int(w.sum()) for w in windows if w is not None)


def whole(blocks: Blocks) -> np.ndarray:
    """Give all tokens of the documents that blocks are cut from, one document after another."""
    ids, offsets = blocks.tokens.ids, blocks.tokens.offsets
    return np.concatenate([ids[offsets[number] : offsets[number + 1]] for number in blocks.documents])


# --- a text that is only evaluated ------------------------------------------------------------------------------------


class WholeText(ZeroShotData):
    """The perplexity of a text in strided windows, tokenised as one: WikiText's convention.

    `path` is a parquet file with a `column` of text; without it, `root` is a folder that holds `<last part of
    hub_id>/<subset>/<split>.parquet`, and without that the hub is read. Rows are joined by `separator`. Windows are of
    `max_length` tokens (None: the model's longest), `stride` apart (None: half of that).
    """

    metric = "perplexity"

    def __init__(
        self,
        *,
        path: str | Path | None = None,
        hub_id: str | None = None,
        subset: str | None = None,
        split: str = "test",
        root: str | Path | None = None,
        column: str = "text",
        separator: str = "\n\n",
        max_length: int | None = None,
        stride: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if path is None and hub_id is None:
            raise ValueError("there is no text to evaluate: give data.path=<parquet file> or data.hub_id=<id>")
        self.hub_id, self.subset, self.split, self.column = hub_id, subset, split, column
        self.separator, self.max_length, self.stride = separator, max_length, stride
        if path is not None:
            self.file: Path | None = Path(path)
        elif root is not None and hub_id is not None:
            self.file = Path(root, hub_id.rsplit("/", 1)[-1], subset or "", f"{split}.parquet")
        else:
            self.file = None

    def check(self) -> None:
        """Check that the local file and its column are there."""
        if self.file is None:
            return
        if not self.file.is_file():
            there = [item.name for item in self.file.parent.iterdir()] if self.file.parent.is_dir() else []
            raise FileNotFoundError(f"text {str(self.file)!r} does not exist{suggest(self.file.name, there)}")
        names = pq.read_schema(self.file).names
        if self.column not in names:
            raise ValueError(f"{self.file} has no column {self.column!r}{suggest(self.column, names)}")

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of the file, or the hub's revision."""
        if self.file is None:
            return {str(self.hub_id): hub_revision(str(self.hub_id), kind="dataset")}
        return {"/".join(self.file.parts[-2:]): file_digest(self.file)}

    def needs(self) -> dict[str, Callable[[], object]]:
        """Say what is needed from the hub, and how it is brought into the local cache; nothing of local files."""
        fetch = functools.partial(hub_rows, str(self.hub_id), self.subset, split=self.split)
        return {} if self.file is not None else {f"{self.hub_id}/{self.subset}": fetch}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Raise ValueError: windows are counted once the text is tokenised."""
        raise ValueError("windows are counted once the text is tokenised: call prepare(backbone.preprocessing())")

    def text(self) -> str:
        """Read the rows and join them."""
        if self.file is None:
            table = hub_table(str(self.hub_id), self.subset, self.split, [self.column])
        else:
            table = pq.read_table(self.file, columns=[self.column])
        return self.separator.join(text or "" for text in table[self.column].to_pylist())

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise the text (or find its tokens in the cache) and cut it into windows."""
        if not hasattr(preprocessing, "tokenizer"):
            raise ValueError("these data are text, but the backbone reads images: choose a decoder, as opt_125m")
        text, tokenizer = self.text(), preprocessing.tokenizer

        def write(folder: Path) -> None:
            ids = np.array([*leading_ids(tokenizer), *encode(tokenizer, [text])[0]], np.int32)
            np.save(folder / "ids.npy", ids)

        key = digest_of("whole text", FORMAT, text, preprocessing.digest)[:32]
        ids = load_arrays(cached_folder(cache_folder(self.cache) / "text" / key, write), ["ids"])["ids"]
        windows = windows_of(ids, preprocessing, max_length=self.max_length, stride=self.stride)
        self.select_evaluated({self.split: windows})
