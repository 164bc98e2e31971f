"""Questions about Python's own manual, no download: which word stands behind these three?"""

import sys
from functools import lru_cache
from typing import Any

import pyarrow as pa

from essential_sparsity.data.embedded_text import paragraphs
from essential_sparsity.data.squad import EVALUATION, TRAIN, Squad
from essential_sparsity.inputs import digest_of
from essential_sparsity.seeds import derive

FEWEST_WORDS = 12
NUM_ASKED = 3
"""Words of a question that stand in the context; the next one is the answer."""
LONGEST_ASKED = 40
"""Characters: of longer ones (tables, rules) nothing is asked."""


@lru_cache(maxsize=1)
def questions() -> list[dict[str, Any]]:
    """Ask one question of each paragraph of at least twelve words; the place is drawn from the paragraph's number."""
    rows = []
    for number, context in enumerate(paragraphs()[0]):
        words = context.split(" ")
        if len(words) < FEWEST_WORDS:
            continue
        place = NUM_ASKED + derive(number, "question") % (len(words) - NUM_ASKED)
        asked = " ".join(words[place - NUM_ASKED : place])
        if len(asked) > LONGEST_ASKED:
            continue
        start = len(" ".join(words[:place])) + 1
        answers = {"text": [words[place]], "answer_start": [start]}
        rows.append({"context": context, "question": f"which word follows {asked}", "answers": answers})
    return rows


class EmbeddedSquad(Squad):
    """A question for each longer paragraph of the manual that Python carries; every fourth is an evaluation row."""

    def __init__(
        self, *, max_length: int = 64, stride: int = 24, max_question_length: int = 24, **options: Any
    ) -> None:
        super().__init__(max_length=max_length, stride=stride, max_question_length=max_question_length, **options)

    def check(self) -> None:
        """Nothing outside Python is read."""

    def _read(self, split: str) -> pa.Table:
        rows = [row for number, row in enumerate(questions()) if (number % 4 == 3) == (split == EVALUATION)]
        return pa.Table.from_pylist(rows)

    def inputs(self) -> dict[str, str]:
        """Give the hash of the manual's text, which differs between versions of Python."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return {f"pydoc_data.topics of Python {version}": digest_of(*paragraphs()[0])}

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count training and evaluation questions."""
        return len(self._read(TRAIN)), {EVALUATION: len(self._read(EVALUATION))}
