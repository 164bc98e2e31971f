"""Blocks of one length cut from whole documents, packed without padding: what language models are pre-trained on.

Legend: R rows (blocks) of a batch, T text tokens of a block, L = block length = T + special tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from essential_sparsity.data.batches import Batch, random_permutation
from essential_sparsity.data.classification import ClassificationData, Examples
from essential_sparsity.data.corpus import Corpus
from essential_sparsity.data.tokens import TokenisedCorpus, tokenise_corpus
from essential_sparsity.inputs import row_hashes
from essential_sparsity.seeds import derive

HELD_OUT = "held_out"
SHORTEST_BLOCK = 8
CHUNK_ROWS = 4096


def exact_share(name: str, value: Any) -> Fraction:
    """Give a decimal in (0, 1] exactly; ValueError naming the key for anything else."""
    try:
        share = Fraction(str(value))
    except (ValueError, ZeroDivisionError):
        share = Fraction(0)
    if isinstance(value, bool) or not 0 < share <= 1:
        raise ValueError(f"{name}={value!r} lies outside (0, 1]: give a share such as 0.6 (1.0: all)")
    return share


# --- documents and blocks ---------------------------------------------------------------------------------------------


def enough_documents(lengths: np.ndarray, order: np.ndarray, share: Fraction) -> np.ndarray:
    """Give the first documents of an order that hold at least this share of the tokens: nested in the share."""
    reached = np.cumsum(lengths[order])
    wanted = -(-share.numerator * int(reached[-1]) // share.denominator)  # rounded up
    return order[: np.searchsorted(reached, wanted) + 1]


def choose_documents(
    lengths: np.ndarray, *, fraction: Fraction, held_out: Fraction | None, subset_seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose documents by seeded orders: (training ones, held-out ones).

    Held-out documents are chosen first, by an order that no seed changes, until they hold the share `held_out` of all
    tokens (None: none are): losses of all fractions and seeds are of the same text. `fraction` is a share of the tokens
    of the rest; training documents keep the order of `subset_seed`.
    """
    order, others = random_permutation(len(lengths), subset_seed), np.zeros(0, np.int64)
    if held_out is not None:
        if len(order) < 2:
            raise ValueError(f"a corpus of {len(order)} document has none to hold out: give a held-out file beside it")
        fixed = random_permutation(len(lengths), derive(0, "held out"))
        others = enough_documents(lengths, fixed, held_out)[: len(order) - 1]
        order = order[~np.isin(order, others)]
    return enough_documents(lengths, order, fraction), np.sort(others)


@dataclass(frozen=True)
class Blocks:
    """Documents one after another, cut into blocks of `length` tokens; the incomplete last block is left out."""

    tokens: TokenisedCorpus
    documents: np.ndarray  # int64, in the order in which they follow one another
    length: int

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each document ends in the stream of tokens, after a 0: int64 [documents + 1]."""
        return np.concatenate([[0], np.cumsum(self.tokens.lengths[self.documents])]).astype(np.int64)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.ends[-1])

    def __len__(self) -> int:
        return self.num_tokens // self.length

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Give the tokens of these blocks: int64 [R, T]."""
        places = np.asarray(rows, np.int64)[:, None] * self.length + np.arange(self.length)
        return self.tokens.ids[self._sources(places)].astype(np.int64)

    def _sources(self, places: np.ndarray) -> np.ndarray:
        """Turn places in the stream into places in the corpus."""
        index = self._document_at(places)
        return self.tokens.offsets[self.documents[index]] + places - self.ends[index]

    def _document_at(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.ends, places, side="right") - 1

    def document_of(self, rows: np.ndarray) -> np.ndarray:
        """Give the document that holds each block's middle token: int64 [R], its number in the corpus."""
        return self.documents[self._document_at(np.asarray(rows, np.int64) * self.length + self.length // 2)]

    @cached_property
    def content(self) -> np.ndarray:
        """Hash (uint64) of each block's tokens."""
        hashes = [np.zeros(0, np.uint64)]
        for start in range(0, len(self), CHUNK_ROWS):
            hashes.append(row_hashes(map(bytes, self.read(np.arange(start, min(start + CHUNK_ROWS, len(self)))))))
        return np.concatenate(hashes)


def framed(tokens: np.ndarray, *, first: int, last: int) -> np.ndarray:
    """Put [CLS] before and [SEP] behind each row: [R, T] → [R, T + 2]."""
    return np.pad(np.pad(tokens, ((0, 0), (1, 0)), constant_values=first), ((0, 0), (0, 1)), constant_values=last)


# --- data sets of blocks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockRows(ABC):
    """Blocks as examples of a data set: each block is a row; subclasses say what the model reads of it."""

    blocks: Blocks
    tokenizer: Any

    @property
    def labels(self) -> np.ndarray:
        """None but in subclasses: zeros."""
        return np.zeros(len(self.blocks), np.int64)

    @property
    def content(self) -> np.ndarray:
        """Hash (uint64) of each block."""
        return self.blocks.content

    @property
    def lengths(self) -> None:
        """All blocks are alike."""
        return None

    @abstractmethod
    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Make the batch of these rows."""


class BlockData(ClassificationData):
    """What pre-training objectives share: blocks of `block_length` tokens of a share of a corpus's documents.

    `fraction` (the root key `data_fraction`) takes whole documents in an order of `subset_seed` until they hold this
    share of the tokens: nested in the fraction. Evaluated are the documents of the corpus's held-out split, or, where
    it has none, documents with the share `holdout_share` of all tokens, the same for every fraction. Further options:
    `ClassificationData`; a row is a block.
    """

    special_tokens = 2

    def __init__(
        self,
        corpus: Corpus,
        *,
        fraction: Any = 1.0,
        block_length: int = 128,
        holdout_share: Any = 0.05,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(block_length, bool) or not isinstance(block_length, int) or block_length < SHORTEST_BLOCK:
            raise ValueError(f"data.block_length={block_length!r} is no whole number of at least {SHORTEST_BLOCK}")
        self.corpus, self.block_length = corpus, block_length
        self.fraction = exact_share("data_fraction", fraction)
        self.holdout_share = exact_share("data.holdout_share", holdout_share)

    def check(self) -> None:
        """Check the corpus from metadata."""
        self.corpus.check()

    def inputs(self) -> dict[str, str]:
        """Give the corpus's hashes."""
        return self.corpus.inputs()

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Raise ValueError: how many blocks there are is known once the corpus is tokenised."""
        raise ValueError("blocks are counted once the corpus is tokenised: call prepare(backbone.preprocessing())")

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise the corpus once (or find it in the cache), choose documents, and cut them into blocks."""
        train, held_out = self.chosen_blocks(preprocessing)
        rows = self.rows(train, preprocessing.tokenizer, train=True)
        self.select(rows, {HELD_OUT: self.rows(held_out, preprocessing.tokenizer, train=False)})

    @abstractmethod
    def rows(self, blocks: Blocks, tokenizer: Any, *, train: bool) -> Examples:
        """Say what the model reads of the blocks, and what it is asked."""
        ...

    def chosen_blocks(self, preprocessing: Any) -> tuple[Blocks, Blocks]:
        """Give the training blocks and the held-out ones; ValueError where there is not one of either."""
        splits = self.corpus.splits()
        tokenised = [
            tokenise_corpus(self.corpus, split, preprocessing=preprocessing, cache=self.cache) for split in splits
        ]
        if self.block_length > preprocessing.max_length:
            raise ValueError(
                f"data.block_length={self.block_length} exceeds the {preprocessing.max_length} tokens that the model "
                "takes: give fewer"
            )
        train, others = choose_documents(
            tokenised[0].lengths,
            fraction=self.fraction,
            held_out=self.holdout_share if len(splits) == 1 else None,
            subset_seed=self._subset_seed,
        )
        held_out = (tokenised[0], others) if len(splits) == 1 else (tokenised[1], np.arange(len(tokenised[1].lengths)))
        return self._cut(tokenised[0], train, "training"), self._cut(*held_out, "held-out")

    def _cut(self, tokens: TokenisedCorpus, documents: np.ndarray, what: str) -> Blocks:
        blocks = Blocks(tokens, documents, self.block_length - self.special_tokens)
        if not len(blocks):
            raise ValueError(
                f"the {len(documents)} {what} documents hold {blocks.num_tokens} tokens, less than one block of "
                f"data.block_length={self.block_length}: give more text or a shorter block"
            )
        return blocks

    def num_tokens(self) -> tuple[int, int]:
        """Count the tokens of one epoch and of all evaluation splits, special ones included."""
        return len(self._prepared()) * self.block_length, sum(self.evaluation_rows.values()) * self.block_length


def required_ids(tokenizer: Any, names: Sequence[str]) -> list[int]:
    """Give the ids of special tokens by name ("mask"); ValueError naming one that the tokenizer lacks."""
    ids = [getattr(tokenizer, f"{name}_token_id", None) for name in names]
    for name, number in zip(names, ids, strict=True):
        if number is None:
            raise ValueError(f"the backbone's tokenizer has no {name} token: choose a backbone of BERT's kind")
    return [int(number) for number in ids if number is not None]
