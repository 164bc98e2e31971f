"""BERT from its shape alone, to be pre-trained here: no download, a vocabulary of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from essential_sparsity.backbones.language import LanguageBackbone, TextPreprocessing
from essential_sparsity.inputs import suggest

SHAPES: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
"""Layers, hidden size and heads, as published (google/bert_uncased_L-*_H-*, BERT base and large)."""


@dataclass(frozen=True)
class NewBert(LanguageBackbone):
    """An untrained BERT of a published size with a `vocabulary` (data/vocabulary.py): the start of a pre-training.

    With `path` (a run's `model/`) it loads like any local folder, tokenizer included. Without one there is nothing
    pre-trained to load, and `pretrained` has no meaning.
    """

    pretrained: bool = False
    size: str = "base"
    vocabulary: Any = None

    family: ClassVar[str] = "BERT"
    shapes: ClassVar[Mapping[str, tuple[int, int, int]]] = SHAPES

    @property
    def folder(self) -> Path | None:
        """The folder of a trained model, or None: a new one."""
        return None if self.path is None else Path(self.path)

    def check(self) -> None:
        """Check the size's name, and the vocabulary or the folder."""
        if self.size not in self.shapes:
            raise ValueError(
                f"backbone.size={self.size!r} is no size of {self.family}{suggest(self.size, self.shapes)}"
            )
        super().check()

    def _check_folder(self) -> None:
        if self.path is not None:
            super()._check_folder()
        elif self.vocabulary is None:
            raise ValueError("backbone.vocabulary is not set: train one on the corpus, or give a tokenizer's folder")
        else:
            self.vocabulary.check()

    def _is_pretrained(self) -> bool:
        return self.pretrained and self.path is not None

    def model_config(self) -> Any:
        """Give the configuration of the size, as large as the vocabulary, or that of `path`."""
        if self.path is not None:
            return super().model_config()
        return self._adapted(self._new_config(self.tokenizer()))

    def _new_config(self, tokenizer: Any) -> Any:
        """Give the configuration of a new model of this size."""
        from transformers import BertConfig

        layers, width, heads = self.shapes[self.size]
        return BertConfig(
            vocab_size=len(tokenizer),
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
        )

    def tokenizer(self) -> Any:
        """Give the tokenizer of `path`, or the vocabulary's (trained at the first call, then from the cache)."""
        return super().tokenizer() if self.path is not None else self.vocabulary.tokenizer()

    def preprocessing(self) -> TextPreprocessing:
        """Give the tokenizer and the longest sequence; refuse a tokenizer of another size than the model's."""
        config = self.model_config()
        self._refuse_other_vocabulary(config)
        return TextPreprocessing(self.tokenizer(), config.max_position_embeddings)

    def inputs(self) -> dict[str, str]:
        """Give the files' hashes, or those of what the vocabulary comes from."""
        return super().inputs() if self.path is not None else dict(self.vocabulary.inputs())
