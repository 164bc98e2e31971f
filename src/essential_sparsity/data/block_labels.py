"""Other objectives on the same blocks: which document is it from (supervised), is the second half the true one (pair).

Arms of METHODS.md, section 8: the same blocks, documents and batches as `MaskedText`, another question.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from essential_sparsity.data.batches import Batch
from essential_sparsity.data.blocks import BlockData, BlockRows, Blocks, framed, required_ids
from essential_sparsity.data.masked_text import EVALUATION_SEED, draws


def _labelled(ids: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> Batch:
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.ones(ids.shape, dtype=torch.int64),
        "labels": torch.from_numpy(labels),
        "row": torch.from_numpy(np.asarray(rows, np.int64)),
    }


# --- which document ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceRows(BlockRows):
    """Whole blocks [R, L]; the label is the document of the block's middle token."""

    @cached_property
    def _documents(self) -> np.ndarray:
        return self.blocks.document_of(np.arange(len(self.blocks)))

    @property
    def labels(self) -> np.ndarray:
        """Number of each block's document in the corpus."""
        return self._documents

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Give these blocks as they are."""
        first, last = required_ids(self.tokenizer, ["cls", "sep"])
        return _labelled(framed(self.blocks.read(rows), first=first, last=last), self.labels[rows], rows)


class SourceBlocks(BlockData):
    """Which of the corpus's documents is a block from? Evaluated on `num_holdout_rows` blocks left out of training.

    Held-out documents have no class, so they are left out here, as in the other objectives, and not evaluated.
    """

    def __init__(self, corpus: Any, *, num_holdout_rows: int = 1000, **options: Any) -> None:
        super().__init__(corpus, num_holdout_rows=num_holdout_rows, **options)
        if num_holdout_rows < 1:
            raise ValueError("data.num_holdout_rows=0 leaves nothing to evaluate: give a number of blocks")

    def prepare(self, preprocessing: Any) -> None:
        """Cut the training documents into blocks; their number is the number of classes."""
        train, _ = self.chosen_blocks(preprocessing)
        self.num_labels = len(train.tokens.lengths)
        if not 2 <= self.num_labels <= len(train):
            raise ValueError(
                f"the corpus has {self.num_labels} documents for {len(train)} blocks, too many or too few classes: "
                "name a column of documents, corpus.source="
            )
        self.select(self.rows(train, preprocessing.tokenizer, train=True), {})

    def rows(self, blocks: Blocks, tokenizer: Any, *, train: bool) -> SourceRows:
        """Give the blocks their documents."""
        required_ids(tokenizer, ["cls", "sep"])
        return SourceRows(blocks, tokenizer)


# --- which half -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairRows(BlockRows):
    """Two halves [CLS] first [SEP] second [SEP]: [R, L]; label 1 where the second is the block's own."""

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Pair these rows by (seed, epoch, row); `seed=None` gives the fixed pairs of evaluation."""
        seed, epoch = (EVALUATION_SEED, -1) if seed is None else (seed, epoch)
        first, last = required_ids(self.tokenizer, ["cls", "sep"])
        rows, num = np.asarray(rows, np.int64), len(self.blocks)
        bits = draws(rows, np.zeros(1, np.int64), seed=seed, purpose="pairs", epoch=epoch, length=1)
        labels = (bits >> np.uint64(63)).astype(np.int64)
        step = 1 + (((bits & np.uint64(0xFFFFFFFF)) * np.uint64(num - 1)) >> np.uint64(32)).astype(np.int64)
        half = self.blocks.length // 2
        own, other = self.blocks.read(rows), self.blocks.read((rows + step) % num)
        second = np.where(labels[:, None] == 1, own[:, half:], other[:, half:])
        ids = np.concatenate([framed(own[:, :half], first=first, last=last), second], axis=1)
        return _labelled(np.pad(ids, ((0, 0), (0, 1)), constant_values=last), labels, rows)


class NextBlock(BlockData):
    """Does the second half follow the first, or is it another block's? Half of the pairs each; held-out documents."""

    special_tokens = 3
    num_labels = 2

    def rows(self, blocks: Blocks, tokenizer: Any, *, train: bool) -> PairRows:
        """Pair the halves of blocks."""
        required_ids(tokenizer, ["cls", "sep"])
        if len(blocks) < 2:
            raise ValueError("one block has no other to be paired with: give more text or a shorter data.block_length")
        return PairRows(blocks, tokenizer)
