"""Exact match and F1 of answers are those of SQuAD's official script, as torchmetrics has it."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from torchmetrics.functional.text import squad

from essential_sparsity.analysis.answers import exact_match, normalised, token_f1

WORDS = [
    "the",
    "The",
    "a",
    "an",
    "Denver",
    "Broncos,",
    "1879",
    "U.S.",
    "New-York",
    "café",
    "Ω",
    "team's",
    "is",
    "—",
    "...",
]


def theirs(answer: str, references: list[str]) -> tuple[float, float]:
    scores = squad([{"prediction_text": answer, "id": "0"}], [{"answers": {"text": references}, "id": "0"}])
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


def mixed(num: int) -> list[tuple[str, list[str]]]:
    """Answers that are right, nearly right, wrong, empty, or of articles and dots alone; one to four references."""
    draw = random.Random(0)

    def text(most: int) -> str:
        return "  ".join(draw.choices(WORDS, k=draw.randint(0, most)))

    rows = []
    for _ in range(num):
        references = [text(5) for _ in range(draw.randint(1, 4))]
        right = draw.choice(references)
        answer = draw.choice([right, right.upper(), f"the {right}!", " ".join(right.split()[:-1]), text(5), ""])
        rows.append((answer, references))
    return rows


def test_scores_equal_those_of_torchmetrics_on_1000_mixed_predictions() -> None:
    rows = mixed(1000)
    ours = [(exact_match(*row), token_f1(*row)) for row in rows]
    assert ours == [pytest.approx(theirs(*row), abs=1e-6) for row in rows]
    assert 0.2 < sum(exact for exact, _ in ours) / len(ours) < 0.8
    assert sum(0 < f1 < 1 for _, f1 in ours) > 100


def test_the_mean_over_real_answers_equals_that_of_torchmetrics(es_data: Path) -> None:
    rows = pq.read_table(es_data / "squad/validation.parquet").to_pylist()
    draw = random.Random(1)
    found = [draw.choice([row["answers"]["text"][0], row["question"], row["context"][:40]]) for row in rows]
    scores = squad(
        [{"prediction_text": answer, "id": row["id"]} for answer, row in zip(found, rows, strict=True)],
        [{"answers": row["answers"], "id": row["id"]} for row in rows],
    )
    for score, name in [(exact_match, "exact_match"), (token_f1, "f1")]:
        ours = [score(answer, row["answers"]["text"]) for answer, row in zip(found, rows, strict=True)]
        assert sum(ours) / len(ours) == pytest.approx(float(scores[name]) / 100, abs=1e-6)


def test_what_is_compared() -> None:
    assert normalised("  The Panthers' (an) U.S. team ") == "panthers us team"
    assert normalised("theatre an") == "theatre"


def test_f1_is_of_words_with_their_counts_and_the_best_reference() -> None:
    assert token_f1("red red blue", ["red", "red blue green"]) == pytest.approx(2 / 3)
    assert token_f1("red", ["blue", "Red."]) == 1.0


def test_where_nothing_is_left_f1_is_the_exact_match() -> None:
    assert (exact_match("the", ["a"]), token_f1("the", ["a"])) == (1.0, 1.0)
    assert (exact_match("", ["red"]), token_f1("", ["red"])) == (0.0, 0.0)
