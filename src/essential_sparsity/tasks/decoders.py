"""Decoders of transformers, taken apart: hidden states first, then logits of the tokens that are wanted, and no others.

Legend: R rows, L tokens of a row, M tokens that are wanted, H hidden size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHANGES_OF_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Values of configurations by which a model changes the logits that its output embedding gives."""

LOGITS_AT_ONCE = 1 << 27
"""Logits in memory at a time: half a gibibyte in fp32, 2,670 tokens of OPT's vocabulary."""


class Decoder:
    """A causal language model as its decoder and its output embedding. Holds no weights of its own."""

    def __init__(self, model: Any) -> None:
        self.model = model
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if output is None or not hasattr(model, str(getattr(model, "base_model_prefix", ""))):
            raise ValueError(f"{type(model).__name__} has no output embedding: use a decoder such as OPT or Llama")
        changed = [name for name in CHANGES_OF_LOGITS if getattr(model.config, name, None) not in (None, 1, 1.0)]
        if changed:
            raise ValueError(f"{type(model).__name__} changes its logits by {changed[0]}, which is not known here")
        self.output: nn.Module = output

    @property
    def body(self) -> Any:
        """The model without its output embedding."""
        return getattr(self.model, self.model.base_model_prefix)

    def hidden(self, input_ids: Tensor, **options: Any) -> Tensor:
        """Give the hidden states [R, L, H]; rows padded on the right need no mask, for no token sees a later one."""
        return self.body(input_ids=input_ids, use_cache=False, **options).last_hidden_state

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Give the loss of each label [M] from the hidden states [M, H] that predict them, in fp32.

        More logits than `LOGITS_AT_ONCE` come in parts, computed again for the gradient.
        """
        size = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        if len(labels) <= size:
            return self._losses(hidden, labels)
        parts = zip(hidden.split(size), labels.split(size), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._losses(*part) for part in parts])
        return torch.cat([self._again(*part) for part in parts])

    def _losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.output(hidden).float(), labels, reduction="none")

    def _again(self, hidden: Tensor, labels: Tensor) -> Tensor:
        losses = checkpoint(self._losses, hidden, labels, use_reentrant=False)
        assert isinstance(losses, Tensor)
        return losses

    def log_likelihoods(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Give the log-likelihood of each of a few tokens [T] after each hidden state [M, H]: [M, T] in fp32."""
        size = max(1, LOGITS_AT_ONCE // self.model.config.vocab_size)
        return torch.cat([self.output(part).float().log_softmax(-1)[:, tokens] for part in hidden.split(size)])
