"""Causal language modelling: training on packed blocks, and the likelihood of a text by strided windows.

Legend: R rows, L tokens of a row, M predicted tokens of the batch, H hidden size.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from essential_sparsity.tasks.decoders import Decoder
from essential_sparsity.tasks.optimization import Schedule
from essential_sparsity.tasks.token_prediction import Batch, TokenPrediction


class CausalLanguageModel(TokenPrediction):
    """Predict each token from those before it: a batch holds `input_ids` [R, L], `positions` [M], `labels` [M].

    A label is the token after its position in the flattened ids. Logits exist for predicted tokens alone, and a bounded
    number of them at a time. `num_labels` has no meaning here. `compile` compiles the decoder (names stay).
    """

    head = "causal_lm"
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
        self._decoder = Decoder(model)
        if compile:
            self._decoder.body.compile()

    def scores(self, batch: Batch) -> Tensor:
        """Give the hidden states [R, L, H]: calibrated pruners look at what goes into the blocks, not at logits."""
        mask: dict[str, Any] = {name: batch[name] for name in ("attention_mask",) if name in batch}
        return self._decoder.hidden(batch["input_ids"], **mask)

    def token_losses(self, batch: Batch) -> Tensor:
        """Give each predicted token's loss [M] in fp32."""
        hidden = self._decoder.hidden(batch["input_ids"]).flatten(0, 1)
        return self._decoder.losses(hidden.index_select(0, batch["positions"]), batch["labels"])
