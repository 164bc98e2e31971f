"""Masked language modelling: loss and logits at the masked positions only, which are 15 % of all.

Legend: R rows, L tokens of a row, M masked tokens of the batch, H hidden size, V vocabulary.
"""

from collections.abc import Callable

import torch.nn.functional as functional
from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.optimization import Schedule
from essential_sparsity.tasks.token_prediction import Batch, TokenPrediction

HEAD_NAMES = ("cls", "lm_head")
"""Modules that turn hidden states into logits: BERT's family, RoBERTa's family."""


class MaskedLanguageModel(TokenPrediction):
    """Predict masked tokens (Devlin et al. 2019): a batch holds `input_ids` [R, L], `positions` [M], `labels` [M].

    `positions` index the flattened ids. `num_labels` has no meaning here. `compile` compiles the encoder (names stay).
    """

    head = "masked_lm"
    """What the backbone is to be built with."""

    def __init__(
        self,
        model: nn.Module,
        *,
        num_labels: int = 0,
        optimizer: Callable[..., Optimizer] | None = None,
        schedule: Schedule | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(model, optimizer=optimizer, schedule=schedule)
        self._output = next((getattr(model, name) for name in HEAD_NAMES if hasattr(model, name)), None)
        if self._output is None:
            raise ValueError(f"{type(model).__name__} has no output embedding known here: use a BERT or RoBERTa")
        if compile:
            self._encoder.compile()

    @property
    def _encoder(self) -> nn.Module:
        return getattr(self.model, str(self.model.base_model_prefix))

    def scores(self, batch: Batch) -> Tensor:
        """Give the logits of the masked tokens [M, V]."""
        hidden = self._encoder(input_ids=batch["input_ids"]).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, batch["positions"])  # [R, L, H] → [M, H]
        assert self._output is not None
        return self._output(chosen)

    def token_losses(self, batch: Batch) -> Tensor:
        """Give each masked token's loss [M] in fp32."""
        return functional.cross_entropy(self.scores(batch).float(), batch["labels"], reduction="none")
