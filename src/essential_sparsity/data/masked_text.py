"""Masked language modelling: blocks of text whose masks are a pure function of (seed, epoch, row).

Legend: R rows (blocks) of a batch, T text tokens of a block, L = T + 2, M masked tokens of the batch.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from essential_sparsity.data.batches import Batch
from essential_sparsity.data.blocks import BlockData, BlockRows, Blocks, framed, required_ids
from essential_sparsity.data.corpus import Corpus
from essential_sparsity.seeds import derive, splitmix64

EVALUATION_SEED = 0
"""Of the masks of evaluation blocks: the same for every run, seed and epoch."""

REPLACED = (0.8, 0.9)
"""Below the first a masked token becomes [MASK], below the second a random one, else it stays (Devlin et al. 2019)."""


# --- which tokens, and what becomes of them ---------------------------------------------------------------------------


def draws(rows: np.ndarray, columns: np.ndarray, *, seed: int, purpose: str, epoch: int, length: int) -> np.ndarray:
    """Draw 64 bits for each (row, column), broadcast, by (seed, purpose, epoch) alone: uint64."""
    counters = rows.astype(np.uint64) * np.uint64(length) + columns.astype(np.uint64)
    return splitmix64(counters, derive(seed, purpose, epoch))


def choose_tokens(scores: np.ndarray, num_masked: int) -> np.ndarray:
    """Choose the `num_masked` tokens of lowest score in each row: bool [R, T]."""
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, np.argpartition(scores, num_masked - 1, axis=1)[:, :num_masked], True, axis=1)
    return chosen


def choose_words(scores: np.ndarray, continues: np.ndarray, num_masked: int) -> np.ndarray:
    """Choose whole words in the order of their first token's score until `num_masked` tokens are reached: bool [R, T].

    `continues` [R, T] marks pieces that go on with the word before; a block's first piece begins a word.
    """
    columns = np.arange(scores.shape[1])
    begins = ~continues
    begins[:, 0] = True
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    order = np.argsort(np.take_along_axis(scores, first, axis=1), axis=1, kind="stable")
    before = np.maximum.accumulate(np.where(np.take_along_axis(begins, order, axis=1), columns, 0), axis=1)
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order, before < num_masked, axis=1)
    return chosen


def replaced(tokens: np.ndarray, bits: np.ndarray, *, mask_id: int, vocabulary_size: int) -> np.ndarray:
    """Replace chosen tokens: 80 % by [MASK], 10 % by any token of the vocabulary, 10 % not, as 64 bits each say."""
    share, anything = bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)
    to_mask, to_random = (np.uint64(round(limit * 2**32)) for limit in REPLACED)
    other = ((anything * np.uint64(vocabulary_size)) >> np.uint64(32)).astype(np.int64)
    return np.where(share < to_mask, mask_id, np.where(share < to_random, other, tokens))


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedRows(BlockRows):
    """Blocks with masks: `input_ids` [R, L], `positions` [M] in the flattened ids, the `labels` [M] there, `row`."""

    num_masked: int = 1
    whole_word: bool = False

    @cached_property
    def _ids(self) -> tuple[int, int, int]:
        first, last, mask = required_ids(self.tokenizer, ["cls", "sep", "mask"])
        return first, last, mask

    @cached_property
    def _continues(self) -> np.ndarray:
        """Which pieces of the vocabulary continue a word: bool [vocabulary]."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        continues = np.array([piece.startswith("##") for piece in pieces])
        if not continues.any():
            raise ValueError("data.whole_word=true needs a WordPiece vocabulary, with ## pieces: leave it false")
        return continues

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Mask these rows by (seed, epoch, row); `seed=None` gives the fixed masks of evaluation."""
        seed, epoch = (EVALUATION_SEED, -1) if seed is None else (seed, epoch)
        rows, tokens = np.asarray(rows, np.int64), self.blocks.read(rows)
        length = self.blocks.length
        place = {"seed": seed, "epoch": epoch, "length": length}
        scores = draws(rows[:, None], np.arange(length), purpose="masks", **place)
        if self.whole_word:
            chosen = choose_words(scores, self._continues[tokens], self.num_masked)
        else:
            chosen = choose_tokens(scores, self.num_masked)
        in_batch, columns = np.nonzero(chosen)
        labels, (first, last, mask) = tokens[in_batch, columns], self._ids
        bits = draws(rows[in_batch], columns, purpose="replacements", **place)
        tokens[in_batch, columns] = replaced(labels, bits, mask_id=mask, vocabulary_size=len(self.tokenizer))
        return {
            "input_ids": torch.from_numpy(framed(tokens, first=first, last=last)),
            "positions": torch.from_numpy(in_batch * (length + 2) + columns + 1),
            "labels": torch.from_numpy(labels),
            "row": torch.from_numpy(rows),
        }


class MaskedText(BlockData):
    """Blocks of text in which `mask_share` of the tokens (or `num_masked` of each block) are to be predicted.

    Each block has the same number of masked tokens, as in BERT's own data (not a number drawn anew, as in later
    collators); `whole_word` takes whole words until that number is reached. Evaluated by perplexity on held-out
    documents, under masks that never change. Further options: `BlockData`.
    """

    metric = "perplexity"

    def __init__(
        self,
        corpus: Corpus,
        *,
        mask_share: float = 0.15,
        num_masked: int | None = None,
        whole_word: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(corpus, **options)
        if not 0 < mask_share < 1:
            raise ValueError(f"data.mask_share={mask_share} lies outside (0, 1): give a share such as 0.15")
        text = self.block_length - self.special_tokens
        if num_masked is not None and not (isinstance(num_masked, int) and 1 <= num_masked < text):
            raise ValueError(f"data.num_masked={num_masked!r} lies outside 1 … {text - 1}: give a number of tokens")
        self.num_masked = num_masked or max(1, math.floor(mask_share * text + 0.5))
        self.whole_word = whole_word

    def rows(self, blocks: Blocks, tokenizer: Any, *, train: bool) -> MaskedRows:
        """Mask the blocks."""
        required_ids(tokenizer, ["cls", "sep", "mask"])
        return MaskedRows(blocks, tokenizer, self.num_masked, self.whole_word)
