"""Questions and their windows as rows of a data set: windows are trained on, questions are evaluated.

Legend: Q questions, W windows.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from essential_sparsity.analysis.answers import exact_match, token_f1
from essential_sparsity.data.batches import Batch
from essential_sparsity.data.questions import TokenisedQuestions


@dataclass(frozen=True)
class QuestionRows:
    """Questions as evaluation rows: a batch holds all windows of its questions, `texts` score what is found."""

    questions: TokenisedQuestions
    texts: pa.Table  # context, answers

    @property
    def labels(self) -> np.ndarray:
        """Where each answer stands in its context: int32 [Q, 2]."""
        return self.questions.answers

    @property
    def content(self) -> np.ndarray:
        """Hash (uint64) of each question with its context."""
        return self.questions.content

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of all windows of each question."""
        return self.questions.question_lengths

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Make the batch of these questions' windows.

        Beside `TokenisedQuestions.inputs` it has the `row` of each question, and of each window the `question` (its
        place among the rows), its number (`window`) and where its `context` begins and ends.
        """
        of, rows = self.questions, np.asarray(rows, np.int64)
        windows = of.windows_of(rows)
        begins = of.context_begins[windows]
        columns = {
            "row": rows,
            "window": windows,
            "question": np.repeat(np.arange(len(rows)), of.num_windows[rows]),
            "context": np.stack([begins, begins + of.window_size[windows]], axis=1),
        }
        return of.inputs(windows) | {name: torch.from_numpy(column) for name, column in columns.items()}

    def complete(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Turn predicted tokens of windows (`window`, `start`, `end`) into characters, and score what stands there.

        Gives the columns row, answer_start, answer_end (characters of the context), exact_match, f1, loss.
        """
        found = zip(*(columns[name].tolist() for name in ("window", "start", "end")), strict=True)
        spans = np.array([self.questions.span(*place) for place in found], np.int64)
        rows = self.texts.take(columns["row"]).select(["context", "answers"]).to_pylist()
        answers = [row["context"][start:end] for row, (start, end) in zip(rows, spans, strict=True)]
        scored = [(answer, row["answers"]["text"]) for answer, row in zip(answers, rows, strict=True)]
        return {
            "row": columns["row"],
            "answer_start": spans[:, 0],
            "answer_end": spans[:, 1],
            "exact_match": np.array([exact_match(*pair) for pair in scored]),
            "f1": np.array([token_f1(*pair) for pair in scored]),
            "loss": columns["loss"],
        }


@dataclass(frozen=True)
class WindowRows:
    """Windows as training rows: what the paper's Table 1 counts (88,656 for SQuAD's 87,599 questions)."""

    questions: TokenisedQuestions

    @property
    def labels(self) -> np.ndarray:
        """First and last token of the answer: int64 [W, 2]."""
        return self.questions.targets

    @property
    def content(self) -> np.ndarray:
        """Hash (uint64) of each window's question with its context."""
        return self.questions.content[self.questions.window_question]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window."""
        return self.questions.window_lengths

    def batch(self, rows: np.ndarray, *, epoch: int, seed: int | None) -> Batch:
        """Make the batch of these windows; texts are not augmented."""
        rows = np.asarray(rows, np.int64)
        return self.questions.inputs(rows) | {"row": torch.from_numpy(rows)}
