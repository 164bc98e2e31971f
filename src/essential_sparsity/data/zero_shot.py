"""What data sets share that are only evaluated: zero-shot questions, the likelihood of a text."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import pyarrow as pa

from essential_sparsity.data.batches import BatchLoader
from essential_sparsity.data.classification import ClassificationData, Examples, Selection
from essential_sparsity.data.from_hub import hub_rows
from essential_sparsity.inputs import suggest


class ZeroShotData(ClassificationData):
    """Evaluation rows alone. Calibrated pruners need text from elsewhere (`pruner/calibration=plain_text`)."""

    zero_shot = True
    """There is nothing to train on: `training.fit` refuses these data before a model is loaded."""

    def select_evaluated(self, evaluation: Mapping[str, Examples]) -> None:
        """Fix the evaluation rows; called by `prepare`."""
        self._evaluation = {name: Selection(part, self._evaluation_rows(part)) for name, part in evaluation.items()}
        self._train = Selection(next(iter(evaluation.values())), np.zeros(0, np.int64))

    def train_dataloader(self) -> BatchLoader:
        """Raise ValueError: there is nothing to train on."""
        raise ValueError(f"{type(self).__name__} has no training rows: use essential-sparsity evaluate")

    def training_rows(self) -> Selection:
        """Raise ValueError: there are no rows to calibrate on."""
        raise ValueError(f"{type(self).__name__} has no training rows to calibrate on: pruner/calibration=plain_text")


def hub_table(hub_id: str, subset: str | None, split: str, columns: list[str]) -> pa.Table:
    """Read columns of one split from the hub; ValueError with the remedy where it cannot be read."""
    table = cast(pa.Table, hub_rows(hub_id, subset, split=split).with_format("arrow")[:])
    if lacking := [name for name in columns if name not in table.column_names]:
        raise ValueError(f"{hub_id} has no column {lacking[0]!r}{suggest(lacking[0], table.column_names)}")
    return table.select(columns)
