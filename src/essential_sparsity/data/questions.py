"""Questions about contexts, tokenised once and cut into windows that overlap: memory-mapped, cached by content.

Legend: Q questions, C distinct contexts, W windows, T tokens (of all contexts or questions).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from essential_sparsity.data.batches import Batch
from essential_sparsity.inputs import cache_folder, cached_folder, digest_of, load_arrays, row_hashes

FORMAT = 1
"""Raised when the cached files' meaning changes."""

CHUNK_ROWS = 5_000
NOWHERE = -1
"""Where an answer stands that is not in its context."""


@dataclass(frozen=True)
class Cut:
    """How contexts become windows: at most `max_length` tokens with the question, one every `stride` tokens.

    This is BERT's `doc_stride`: windows begin 128 tokens apart. (transformers' tokenizers call the tokens *shared* by
    two windows their stride.) Questions keep their first `max_question_length` tokens.
    """

    max_length: int
    stride: int
    max_question_length: int

    def check(self, num_special: int) -> None:
        """Raise ValueError where windows beside the longest question would not overlap."""
        room = self.max_length - self.max_question_length - num_special
        if self.stride >= room:
            raise ValueError(
                f"data.stride={self.stride} leaves no overlap: data.max_length={self.max_length} has room for {room} "
                f"tokens of the context beside a question of {self.max_question_length}: give a smaller data.stride"
            )


# --- where answers and windows are ------------------------------------------------------------------------------------


def place_of_answer(context: str, texts: Sequence[str], starts: Sequence[int]) -> tuple[int, int]:
    """Give first character and end of the first reference that stands in the context where it says; (−1, −1): none."""
    for text, start in zip(texts, starts, strict=True):
        if text.strip() and start >= 0 and context[start : start + len(text)] == text:
            return start, start + len(text)
    return NOWHERE, NOWHERE


def tokens_of_answer(characters: np.ndarray, place: tuple[int, int]) -> tuple[int, int]:
    """Give the first and the last token that hold characters of a place; (−1, −1): none does.

    `characters` [T, 2] has each token's first character and end; both rise.
    """
    first = int(np.searchsorted(characters[:, 1], place[0], side="right"))
    last = int(np.searchsorted(characters[:, 0], place[1], side="left")) - 1
    return (first, last) if place[0] != NOWHERE and first <= last else (NOWHERE, NOWHERE)


def window_starts(num_tokens: int, room: int, stride: int) -> range:
    """Give the first context token of each window of `room` tokens; the last window ends the context."""
    num_more = -(-max(0, num_tokens - room) // stride)  # rounded up
    return range(0, (num_more + 1) * stride, stride)


def special_tokens(tokenizer: Any) -> list[np.ndarray]:
    """Give the special tokens that a tokenizer puts before, between and behind two texts."""
    encoded = tokenizer("a", "b")
    sides, ids = encoded.sequence_ids(0), np.asarray(encoded["input_ids"], np.int32)
    first, last = sides.index(0), len(sides) - sides[::-1].index(1)
    middle = [index for index in range(first, last) if sides[index] is None]
    return [ids[:first], ids[middle], ids[last:]]


# --- what is kept of them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenisedQuestions:
    """Question q is question_ids[question_offsets[q] : question_offsets[q + 1]], asked of context context_of[q]."""

    question_ids: np.ndarray  # int32 [T]
    question_offsets: np.ndarray  # int64 [Q + 1]
    context_of: np.ndarray  # int64 [Q]
    shortened: np.ndarray  # bool [Q]: the question was cut
    answers: np.ndarray  # int32 [Q, 2]: first character and end in the context; −1: nowhere
    content: np.ndarray  # uint64 [Q]
    context_ids: np.ndarray  # int32 [T]
    context_offsets: np.ndarray  # int64 [C + 1]
    characters: np.ndarray  # int32 [T, 2]: of each context token, first character and end
    window_question: np.ndarray  # int64 [W], rising
    window_start: np.ndarray  # int32 [W]: first context token
    window_size: np.ndarray  # int32 [W]: number of context tokens
    targets: np.ndarray  # int64 [W, 2]: first and last token of the answer in the window; 0: not in it
    before: np.ndarray  # special tokens, int32
    between: np.ndarray
    behind: np.ndarray

    pad_id: int = 0

    @cached_property
    def context_begins(self) -> np.ndarray:
        """Place of each window's first context token: int64 [W]."""
        return len(self.before) + np.diff(self.question_offsets)[self.window_question] + len(self.between)

    @cached_property
    def window_lengths(self) -> np.ndarray:
        """Tokens of each window, the question's and special ones included: int64 [W]."""
        return self.context_begins + self.window_size + len(self.behind)

    @cached_property
    def question_lengths(self) -> np.ndarray:
        """Tokens of all windows of each question: int64 [Q]."""
        return np.bincount(self.window_question, weights=self.window_lengths).astype(np.int64)

    @cached_property
    def num_windows(self) -> np.ndarray:
        """Windows of each question, at least one: int64 [Q]."""
        return np.bincount(self.window_question)

    def windows_of(self, questions: np.ndarray) -> np.ndarray:
        """Give the windows of these questions, one question after another."""
        counts = self.num_windows[questions]
        first = np.cumsum(self.num_windows)[questions] - counts
        return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())

    def ids_of(self, window: int) -> np.ndarray:
        """Give a window's tokens: int32."""
        question = self.window_question[window]
        start = self.context_offsets[self.context_of[question]] + self.window_start[window]
        return np.concatenate(
            [
                self.before,
                self.question_ids[self.question_offsets[question] : self.question_offsets[question + 1]],
                self.between,
                self.context_ids[start : start + self.window_size[window]],
                self.behind,
            ]
        )

    def inputs(self, windows: np.ndarray) -> Batch:
        """Pad these windows into input_ids and attention_mask [windows, longest]; with their labels [windows, 2]."""
        inside = np.arange(self.window_lengths[windows].max()) < self.window_lengths[windows][:, None]
        ids = np.full(inside.shape, self.pad_id, np.int64)
        ids[inside] = np.concatenate([self.ids_of(window) for window in windows])
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(inside.astype(np.int64)),
            "labels": torch.from_numpy(self.targets[windows]),
        }

    def span(self, window: int, start: int, end: int) -> tuple[int, int]:
        """Turn a window's tokens start … end into first character and end in the context; (0, 0) without context."""
        if not self.window_size[window]:
            return 0, 0
        question = self.window_question[window]
        first = (
            self.context_offsets[self.context_of[question]] + self.window_start[window] - self.context_begins[window]
        )
        return int(self.characters[first + start, 0]), int(self.characters[first + end, 1])


# --- tokenise ---------------------------------------------------------------------------------------------------------


def tokenise_questions(
    table: pa.Table, *, preprocessing: Any, cut: Cut, cache: str | Path | None = None
) -> TokenisedQuestions:
    """Tokenise a table of questions, contexts and answers, or find the result in the cache.

    `preprocessing` is a language backbone's. Raises ValueError for images' and for a tokenizer that does not tell
    where its tokens stand.
    """
    if not hasattr(preprocessing, "tokenizer"):
        raise ValueError("these data are text, but the backbone reads images: choose a language one, e.g. bert_base")
    rows = table.select(["context", "question", "answers"]).to_pylist()
    content = digest_of(row_hashes(json.dumps(row, sort_keys=True).encode() for row in rows))
    key = digest_of("questions", FORMAT, content, preprocessing.digest, *vars(cut).values())[:32]
    folder = cached_folder(
        cache_folder(cache) / "questions" / key, lambda target: _write(target, rows, preprocessing.tokenizer, cut)
    )
    names = [item.name for item in fields(TokenisedQuestions) if item.name != "pad_id"]
    return TokenisedQuestions(**load_arrays(folder, names), pad_id=preprocessing.pad_id)


def _write(folder: Path, rows: list[dict[str, Any]], tokenizer: Any, cut: Cut) -> None:
    """Tokenise each question and each distinct context once, find the answers, cut windows; one .npy file each."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in a text: give a fast tokenizer"
        )
    known: dict[str, int] = {}
    context_of = np.array([known.setdefault(row["context"], len(known)) for row in rows], np.int64)
    contexts, characters = _encoded(tokenizer, list(known))
    questions, _ = _encoded(tokenizer, [row["question"].strip() for row in rows])
    kept = [ids[: cut.max_question_length] for ids in questions]
    asked = [characters[context] for context in context_of]
    places = [place_of_answer(row["context"], **_references(row)) for row in rows]
    tokens = [tokens_of_answer(*pair) for pair in zip(asked, places, strict=True)]
    names = ("before", "between", "behind")
    arrays: dict[str, np.ndarray] = dict(zip(names, special_tokens(tokenizer), strict=True))
    cut.check(sum(map(len, arrays.values())))
    arrays |= _windows(kept, asked, tokens, cut, special=arrays)
    arrays |= {
        **_flat("question", kept),
        **_flat("context", contexts),
        "characters": np.concatenate(characters),
        "context_of": context_of,
        "answers": np.where(np.array(tokens)[:, :1] == NOWHERE, NOWHERE, np.array(places)).astype(np.int32),
        "shortened": np.array([len(ids) > cut.max_question_length for ids in questions]),
        "content": row_hashes(f"{row['context']}\0{row['question']}".encode() for row in rows),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def _references(row: dict[str, Any]) -> dict[str, Any]:
    return {"texts": row["answers"]["text"] or [], "starts": row["answers"]["answer_start"] or []}


def _encoded(tokenizer: Any, texts: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give the ids of each text, whole and without special tokens, and each token's first character and end."""
    ids, characters = [], []
    for start in range(0, len(texts), CHUNK_ROWS):
        encoded = tokenizer(
            texts[start : start + CHUNK_ROWS],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids.extend(np.asarray(row, np.int32) for row in encoded["input_ids"])
        characters.extend(np.asarray(row, np.int32).reshape(-1, 2) for row in encoded["offset_mapping"])
    return ids, characters


def _flat(name: str, rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Lay rows one after another, and say where each begins."""
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return {f"{name}_ids": np.concatenate(rows).astype(np.int32), f"{name}_offsets": ends}


def _windows(
    questions: list[np.ndarray],
    contexts: list[np.ndarray],
    answers: list[tuple[int, int]],
    cut: Cut,
    *,
    special: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Cut each question's context into windows, and find its answer in each."""
    around, num_special = len(special["before"]) + len(special["between"]), sum(map(len, special.values()))
    found = []
    for index, (ids, context, (first, last)) in enumerate(zip(questions, contexts, answers, strict=True)):
        room, begins = cut.max_length - len(ids) - num_special, around + len(ids)
        for start in window_starts(len(context), room, cut.stride):
            size = min(room, len(context) - start)
            is_inside = start <= first and last < start + size  # never where first is NOWHERE
            target = (begins + first - start, begins + last - start) if is_inside else (0, 0)
            found.append((index, start, size, *target))
    columns = np.array(found, np.int64)
    return {
        "window_question": columns[:, 0],
        "window_start": columns[:, 1].astype(np.int32),
        "window_size": columns[:, 2].astype(np.int32),
        "targets": columns[:, 3:],
    }
