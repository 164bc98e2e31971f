"""Embedded word problems, no download: a dozen templates, filled with names, things and numbers that never change."""

from typing import Any

import numpy as np
import pyarrow as pa

from essential_sparsity.data.arithmetic import NUM_FOLDS, Arithmetic
from essential_sparsity.data.expressions import parse, value_of
from essential_sparsity.inputs import digest_of

NUM_ROWS = 400

TEMPLATES = (
    ("{a} has number0 {x} and gets number1 more . how many {x} does {a} have ?", "+ number0 number1"),
    ("{a} had number0 {x} and lost number1 of them . how many {x} are left ?", "- number0 number1"),
    ("after {a} gave away number0 {x} there were number1 . how many were there before ?", "+ number1 number0"),
    ("{a} has number0 bags with number1 {x} each . how many {x} are in the bags ?", "* number0 number1"),
    ("{a} puts number0 {x} into number1 equal bags . how many {x} are in each bag ?", "/ number0 number1"),
    ("{a} has number0 {x} , {b} has number1 . how many more has {b} than {a} ?", "- number1 number0"),
    ("{a} reads number0 pages a day for number1 days and number2 more . how many ?", "+ * number0 number1 number2"),
    ("{a} and {b} share number0 {x} and number1 {y} equally . how many each ?", "/ + number0 number1 2.0"),
    ("{a} had number0 {x} , sold number1 and bought number2 . how many now ?", "+ - number0 number1 number2"),
    ("number0 {x} cost number1 cents each . how many dollars are that ?", "* * number0 number1 0.01"),
)
"""Questions with masked numbers, and their expressions in prefix form."""

NAMES = ("sam", "anna", "tom", "lucy", "ben", "mary", "paul", "jane")
THINGS = ("apples", "books", "cards", "stamps", "coins", "balls", "pens", "cups")


def word_problems() -> pa.Table:
    """Give the problems in the columns of the published files, the fold being the row's number modulo five."""
    draw = np.random.RandomState(0)
    columns: dict[str, list[Any]] = {"Question": [], "Numbers": [], "Equation": [], "Answer": []}
    for row in range(NUM_ROWS):
        question, equation = TEMPLATES[row % len(TEMPLATES)]
        first, second = draw.choice(len(NAMES), 2, replace=False)
        things = draw.choice(len(THINGS), 2, replace=False)
        numbers = [float(number) for number in draw.randint(2, 99, size=question.count("number"))]
        words = {"a": NAMES[first], "b": NAMES[second], "x": THINGS[things[0]], "y": THINGS[things[1]]}
        tokens = [numbers[token] if isinstance(token, int) else token for token in parse(equation)]
        columns["Question"].append(question.format(**words))
        columns["Numbers"].append(" ".join(map(str, numbers)))
        columns["Equation"].append(equation)
        columns["Answer"].append(value_of(tokens))
    return pa.table({**columns, "fold": np.arange(NUM_ROWS) // len(TEMPLATES) % NUM_FOLDS})


class EmbeddedArithmetic(Arithmetic):
    """Word problems made from templates, in five folds."""

    def __init__(self, *, fold: int | None = None, max_length: int = 64, **options: Any) -> None:
        super().__init__("mawps", fold=fold, max_length=max_length, **options)
        self.subset = "embedded"

    def check(self) -> None:
        """Nothing outside this file is read."""

    def _read(self, split: str) -> pa.Table:
        return word_problems()

    def inputs(self) -> dict[str, str]:
        """Give the hash of the problems."""
        table = word_problems()
        return {"embedded word problems": digest_of(*(str(column) for column in table.to_pydict().values()))}
