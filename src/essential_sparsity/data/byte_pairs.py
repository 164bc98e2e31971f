"""Byte-level BPE of GPT-2's kind from vocab.json and merges.txt, whole or the part that was merged first."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from essential_sparsity.hub import asked
from essential_sparsity.inputs import file_digest, hub_revision, suggest

FILES = ("vocab.json", "merges.txt")
END, PAD = "<|endoftext|>", "<pad>"
BYTES = 256
SMALLEST = BYTES + 2


@dataclass(frozen=True)
class BytePairs:
    """GPT-2's vocabulary: any text without an unknown token, upper and lower case, for new decoders.

    `path` is a folder with vocab.json and merges.txt; without it `<root>/<name>` is, and without `root` the hub's
    `hub_id`. `size` keeps the pieces that were merged first (merges are stored in that order), so that a small model is
    not mostly its vocabulary; None keeps all. Texts begin with <|endoftext|>, as OPT's with </s>; <pad> is a token of
    its own.
    """

    path: str | Path | None = None
    root: str | Path | None = None
    name: str = "tokenizers/gpt2"
    hub_id: str = "openai-community/gpt2"
    size: int | None = None

    def __post_init__(self) -> None:
        """Check the size."""
        size = self.size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < SMALLEST):
            raise ValueError(f"vocabulary.size={size!r} is no whole number of at least {SMALLEST}: give one, or null")

    @property
    def folder(self) -> Path | None:
        """The local folder, or None: the hub."""
        if self.path is not None:
            return Path(self.path)
        return None if self.root is None else Path(self.root) / self.name

    def check(self) -> None:
        """Check that the files are there."""
        folder = self.folder
        if folder is None:
            return
        for name in FILES:
            if not (folder / name).is_file():
                there = [item.name for item in folder.iterdir()] if folder.is_dir() else []
                raise FileNotFoundError(f"vocabulary {str(folder)!r} has no {name}{suggest(name, there)}")

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of each file, or the hub's revision."""
        if self.folder is None:
            return {self.hub_id: hub_revision(self.hub_id)}
        return {f"{self.folder.name}/{name}": file_digest(self.folder / name) for name in FILES}

    def needs(self) -> dict[str, Callable[[], object]]:
        """Say what is needed from the hub, and how it is brought into the local cache; nothing of local files."""
        return {} if self.folder is not None else {self.hub_id: self._files}

    def tokenizer(self) -> Any:
        """Make the tokenizer."""
        self.check()
        return byte_pair_tokenizer(*_read(*self._files()), size=self.size)

    def _files(self) -> tuple[Path, Path]:
        if self.folder is not None:
            return self.folder / FILES[0], self.folder / FILES[1]
        from huggingface_hub import hf_hub_download

        def question() -> tuple[Path, Path]:
            vocabulary, merges = (Path(hf_hub_download(self.hub_id, name)) for name in FILES)
            return vocabulary, merges

        return asked(question, what=f"vocabulary {self.hub_id!r}", remedy="backbone.vocabulary.path=<folder>")


@lru_cache(maxsize=4)
def _read(vocabulary: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = merges.read_text("utf-8").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    return json.loads(vocabulary.read_text("utf-8")), [(first, second) for first, second in pairs]


def byte_pair_tokenizer(ids: dict[str, int], merges: list[tuple[str, str]], *, size: int | None) -> Any:
    """Make a byte-level BPE tokenizer of at most `size` tokens, two special ones included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = sorted((piece for piece in ids if piece != END), key=ids.__getitem__)
    if size is not None:
        pieces = pieces[: size - 2]
        merges = merges[: len(pieces) - BYTES]
    kept = {piece: number for number, piece in enumerate([*pieces, END, PAD])}
    if lacking := [pair for pair in merges if "".join(pair) not in kept]:
        raise ValueError(
            f"merges.txt makes {''.join(lacking[0])!r}, which vocab.json has not: give files of one tokenizer"
        )
    tokenizer = Tokenizer(models.BPE(vocab=kept, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B:1", special_tokens=[(END, kept[END])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD)
