"""An embedded text task, no download: is a paragraph of CPython's own manual prose or code?"""

import re
import sys
from typing import Any

import numpy as np
import pyarrow as pa

from essential_sparsity.data.classification import ClassificationData
from essential_sparsity.data.text import tokenise
from essential_sparsity.inputs import digest_of

FEWEST_WORDS = 4


def paragraphs() -> tuple[list[str], np.ndarray]:
    """Give the distinct paragraphs of `pydoc_data.topics`, blanks folded, and their labels (1: every line indented)."""
    from pydoc_data.topics import topics

    found: dict[str, int] = {}
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(paragraph.split())
            if len(text.split()) >= FEWEST_WORDS:
                found.setdefault(text, int(all(line.startswith("   ") for line in paragraph.splitlines())))
    return list(found), np.array(list(found.values()), np.int64)


class EmbeddedText(ClassificationData):
    """Prose or code: some 1,700 paragraphs of the manual that Python carries; every fourth is an evaluation row."""

    metric = "accuracy"
    num_labels = 2

    def __init__(self, *, max_length: int = 64, **options: Any) -> None:
        super().__init__(**options)
        self.max_length = max_length

    def check(self) -> None:
        """Nothing outside Python is read."""

    def prepare(self, preprocessing: Any) -> None:
        """Tokenise the paragraphs once."""
        texts, labels = paragraphs()
        evaluated = np.arange(len(texts)) % 4 == 3
        splits = []
        for rows in (~evaluated, evaluated):
            table = pa.table({"text": [text for text, chosen in zip(texts, rows, strict=True) if chosen]})
            splits.append(
                tokenise(
                    table,
                    text=["text"],
                    labels=labels[rows],
                    preprocessing=preprocessing,
                    max_length=self.max_length,
                    cache=self.cache,
                )
            )
        self.select(splits[0], {"validation": splits[1]})

    def inputs(self) -> dict[str, str]:
        """Give the hash of the manual's text, which differs between versions of Python."""
        return {
            f"pydoc_data.topics of Python {sys.version_info.major}.{sys.version_info.minor}": digest_of(
                *paragraphs()[0]
            )
        }

    def available_rows(self) -> tuple[int, dict[str, int]]:
        """Count training and evaluation rows."""
        num = len(paragraphs()[0])
        return num - num // 4, {"validation": num // 4}
