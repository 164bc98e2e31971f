"""The real job that two benchmarks share: all-MiniLM (22.7 M parameters, 10.6 M prunable) on SST-2, where they lie."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.data.glue import Glue
from essential_sparsity.tasks.optimization import linear
from essential_sparsity.tasks.sequence_classification import SequenceClassification

ADAMW = partial(torch.optim.AdamW, lr=5e-5, weight_decay=1e-8, fused=True)
TASK = partial(SequenceClassification, optimizer=ADAMW, schedule=linear)


@dataclass(frozen=True)
class Inputs:
    """Where the model and the data are, and where derived files go."""

    model: str
    data: str
    cache: str

    def backbone(self) -> LanguageBackbone:
        """Give the backbone of the local model."""
        return LanguageBackbone(path=self.model)

    def glue(self, num_train_rows: int | None = None, num_evaluation_rows: int | None = None) -> Glue:
        """Give SST-2; all 436 validation rows by default."""
        return Glue(
            "sst2", root=self.data, num_train_rows=num_train_rows, num_evaluation_rows=num_evaluation_rows,
            cache=self.cache,
        )  # fmt: skip


def inputs(cache: str) -> Inputs | None:
    """Give the real inputs that ES_MODELS and ES_DATA name; None where either is not there."""
    model = Path(os.environ.get("ES_MODELS", ""), "all-MiniLM-L6-v2")
    data = Path(os.environ.get("ES_DATA", ""))
    if not (model / "config.json").is_file() or not (data / "glue" / "sst2" / "validation.parquet").is_file():
        return None
    return Inputs(str(model.resolve()), str(data.resolve()), cache)


SKIPPED = "ES_DATA and ES_MODELS name no SST-2 and all-MiniLM: skipped"
