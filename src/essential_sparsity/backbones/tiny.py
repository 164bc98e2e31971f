"""Tiny language backbones of the real families, with no download: for tests, demonstrations and `scale=tiny`."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from essential_sparsity.backbones.language import LanguageBackbone, TextPreprocessing
from essential_sparsity.inputs import cache_folder, cached_folder, digest_of, suggest

VOCABULARY_SIZE = 4096
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FORMAT = 1
"""Raised when the vocabulary is built in another way."""

# About 0.8 M and 0.4 M parameters; BERT's shape is that of google/bert_uncased_L-2_H-128_A-2.
SHAPES: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 512,
    },
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 256,
        "max_position_embeddings": 512,
    },
}


@dataclass(frozen=True)
class TinyLanguageBackbone(LanguageBackbone):
    """A tiny BERT or OPT with a vocabulary made from Python's own documentation; untrained unless `path` is given.

    With `path` (a run's `model/`) it loads like any local folder. Without one there is nothing pre-trained to load, and
    `pretrained` has no meaning.
    """

    family: str = "bert"

    @property
    def folder(self) -> Path | None:
        """The folder of a trained model, or None: the built-in shape."""
        return None if self.path is None else Path(self.path)

    def check(self) -> None:
        """Check the family's name, and the folder if there is one."""
        if self.family not in SHAPES:
            raise ValueError(f"backbone.family={self.family!r} is no tiny family{suggest(self.family, SHAPES)}")
        super().check()

    def _check_folder(self) -> None:
        if self.path is not None:
            super()._check_folder()

    def _is_pretrained(self) -> bool:
        return self.pretrained and self.path is not None

    def model_config(self) -> Any:
        """Give the built-in configuration, or that of `path`."""
        if self.path is not None:
            return super().model_config()
        from transformers import BertConfig, OPTConfig

        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        kind = {"bert": BertConfig, "opt": OPTConfig}[self.family]
        return self._adapted(kind(vocab_size=VOCABULARY_SIZE, **ids, **SHAPES[self.family]))

    def tokenizer(self) -> Any:
        """Give the tokenizer of `path`, or the built-in one (from the cache)."""
        return super().tokenizer() if self.path is not None else documentation_tokenizer()

    def preprocessing(self) -> TextPreprocessing:
        """Give the tokenizer and the longest sequence."""
        return TextPreprocessing(self.tokenizer(), self.model_config().max_position_embeddings)

    def inputs(self) -> dict[str, str]:
        """Give the files' hashes, or the hash of the built-in vocabulary."""
        if self.path is not None:
            return super().inputs()
        return {f"{self.family}_tiny": TextPreprocessing(documentation_tokenizer(), 0).digest}


# --- the vocabulary ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def documentation_tokenizer() -> Any:
    """Give the uncased WordPiece tokenizer of 4,096 pieces from `pydoc_data.topics`, cached on disk by its content."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))
    folder = cache_folder() / "vocabularies" / digest_of(FORMAT, VOCABULARY_SIZE, text)[:32]
    cached_folder(folder, lambda target: (target / "vocab.txt").write_text("\n".join(vocabulary(text)), "utf-8"))
    pieces = (folder / "vocab.txt").read_text("utf-8").split("\n")
    return wordpiece_tokenizer(pieces)


def vocabulary(text: str, size: int = VOCABULARY_SIZE) -> list[str]:
    """Choose the pieces: special ones, all characters, frequent words, and letter groups that shorten the other words.

    Two thirds are the most frequent words; the rest continue a word (`##ing`), chosen by count × letters saved. Ties go
    by the alphabet, so the vocabulary is a pure function of the text. (The trainer of `tokenizers` is not.)
    """
    words = Counter(re.findall(r"[a-z]+|[0-9]|[^\sa-z0-9]", text.lower()))
    characters = sorted({character for word in words for character in word})
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters if character.isalnum())]
    room = size - len(pieces)
    ranked = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    whole = ranked[: room * 2 // 3]
    groups: Counter[str] = Counter()
    for word in ranked:
        for start in range(1, len(word) - 1):
            for end in range(start + 2, min(len(word), start + 6) + 1):
                groups[word[start:end]] += len(word[start:end]) - 1
    saving = sorted(groups, key=lambda group: (-groups[group], group))
    return pieces + whole + [f"##{group}" for group in saving[: room - len(whole)]]


def wordpiece_tokenizer(pieces: list[str], *, lowercase: bool = True) -> Any:
    """Give BERT's tokenizer over these pieces: split at blanks and punctuation, [CLS] first … [SEP] second … [SEP]."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # type: ignore[arg-type]
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)
