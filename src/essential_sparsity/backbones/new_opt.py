"""OPT from its shape alone, to be pre-trained here: no download, a vocabulary of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from essential_sparsity.backbones.new_bert import NewBert

SHAPES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "125m": (12, 768, 12),
    "1.3b": (24, 2048, 32),
    "6.7b": (32, 4096, 32),
}
"""Layers, hidden size and heads: the published ones from 125m on (arXiv 2205.01068, table 1), BERT's small ones."""


@dataclass(frozen=True)
class NewOpt(NewBert):
    """An untrained OPT of a published size, or a smaller one, with a `vocabulary`: the start of a pre-training.

    With `path` (a run's `model/`) it loads like any local folder, tokenizer included. `config.max_position_embeddings`
    is the longest sequence that it takes: no more than the blocks that it is trained on.
    """

    size: str = "mini"
    family: ClassVar[str] = "OPT"
    shapes: ClassVar[Mapping[str, tuple[int, int, int]]] = SHAPES

    def _new_config(self, tokenizer: Any) -> Any:
        from transformers import OPTConfig

        layers, width, heads = self.shapes[self.size]
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
        last = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        return OPTConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=layers,
            hidden_size=width,
            word_embed_proj_dim=width,
            num_attention_heads=heads,
            ffn_dim=4 * width,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=first,
            eos_token_id=last,
        )
