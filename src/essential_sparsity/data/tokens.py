"""A corpus tokenised once: one flat memory-mapped array of ids and where each document starts, cached by content."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from essential_sparsity.data.corpus import Corpus
from essential_sparsity.inputs import cache_folder, cached_folder, digest_of, load_arrays

FORMAT = 1
"""Raised when the cached files' meaning changes."""


@dataclass(frozen=True)
class TokenisedCorpus:
    """Documents without special tokens: document i is ids[offsets[i] : offsets[i + 1]]."""

    ids: np.ndarray  # uint16, or int32 for vocabularies above 65,536; all documents one after another
    offsets: np.ndarray  # int64 [documents + 1]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document."""
        return np.diff(self.offsets)


def tokenise_corpus(
    corpus: Corpus, split: str, *, preprocessing: Any, cache: str | Path | None = None
) -> TokenisedCorpus:
    """Tokenise a split of a corpus, or find it in the cache; `preprocessing` is a language backbone's."""
    if not hasattr(preprocessing, "tokenizer"):
        raise ValueError("these data are text, but the backbone reads images: choose a language backbone, as bert_new")
    key = digest_of("tokens", FORMAT, corpus.digest(split), preprocessing.digest)[:32]
    folder = cached_folder(
        cache_folder(cache) / "corpora" / key, lambda target: _write(target, corpus, split, preprocessing.tokenizer)
    )
    return TokenisedCorpus(**load_arrays(folder, ["ids", "offsets"]))


def _write(folder: Path, corpus: Corpus, split: str, tokenizer: Any) -> None:
    """Tokenise a chunk of rows at a time into a raw file, so that memory does not grow with the corpus."""
    documents = corpus.documents(split)
    kind = np.uint16 if len(tokenizer) <= 1 << 16 else np.int32
    lengths: list[np.ndarray] = [np.zeros(1, np.int64)]
    raw = folder / "ids.raw"
    with raw.open("wb") as file:
        for texts in documents.chunks():
            rows = encode(tokenizer, texts)
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            file.write(np.concatenate([np.asarray(row, kind) for row in rows]).tobytes())
    row_ends = np.cumsum(np.concatenate(lengths))
    np.save(folder / "ids.npy", np.memmap(raw, kind, mode="r") if row_ends[-1] else np.zeros(0, kind))
    np.save(folder / "offsets.npy", row_ends[documents.offsets])
    raw.unlink()


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Give the ids of each text, whole and without special tokens."""
    return tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]


def leading_ids(tokenizer: Any) -> list[int]:
    """Give the special tokens that a tokenizer puts before a text: OPT's </s>, Llama's <s>, BERT's [CLS], GPT-2's none.

    Decoders read them, and none that would end the text.
    """
    whole, plain = tokenizer("a", verbose=False)["input_ids"], encode(tokenizer, ["a"])[0]
    places = [at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain]
    return list(whole[: places[0]]) if places else []
