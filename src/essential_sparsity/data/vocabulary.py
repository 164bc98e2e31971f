"""Vocabularies of new language models: WordPiece trained on the corpus, or a tokenizer that is given.

The trainer of `tokenizers` breaks ties by the order of a hash map, differently in every process; this one is a pure
function of the corpus. Both merge the most frequent pair of neighbouring pieces, again and again.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from essential_sparsity.backbones.tiny import SPECIAL, wordpiece_tokenizer
from essential_sparsity.data.corpus import TRAIN, Corpus
from essential_sparsity.inputs import cache_folder, cached_folder, digest_of, file_digest

LARGEST = 30_522
"""The size of BERT's own vocabulary."""

SMALLEST = 64
MOST_CHARACTERS = 1_000
LONGEST_WORD = 100
"""Longer words are [UNK] in BERT's tokenizer, whatever the vocabulary."""

FEWEST = 2
"""Pairs that occur less often are not merged."""

FORMAT = 1
"""Raised when vocabularies are trained in another way."""


@dataclass(frozen=True)
class TrainedVocabulary:
    """An uncased WordPiece vocabulary of at most `size` pieces, trained on the corpus's training split, and cached."""

    corpus: Corpus
    size: int = LARGEST

    def __post_init__(self) -> None:
        """Check the size."""
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not SMALLEST <= self.size <= LARGEST:
            raise ValueError(
                f"vocabulary.size={self.size!r} lies outside {SMALLEST} … {LARGEST:,}: give a whole number inside"
            )

    def check(self) -> None:
        """Check the corpus."""
        self.corpus.check()

    def inputs(self) -> dict[str, str]:
        """Give the hashes of the corpus."""
        return self.corpus.inputs()

    def tokenizer(self) -> Any:
        """Give the tokenizer; trained at the first call for a corpus and size, then from the cache."""
        return wordpiece_tokenizer(list(self.pieces()))

    def pieces(self) -> tuple[str, ...]:
        """Give the pieces in the order of their ids."""
        key = digest_of("vocabulary", FORMAT, self.size, self.corpus.digest(TRAIN))[:32]
        folder = cached_folder(cache_folder() / "vocabularies" / key, self._write)
        return _read_pieces(folder / "vocab.txt")

    def _write(self, folder: Path) -> None:
        texts = (text for chunk in self.corpus.documents(TRAIN).chunks() for text in chunk)
        pieces = wordpieces(word_counts(texts), self.size)
        (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8")


@dataclass(frozen=True)
class GivenVocabulary:
    """A tokenizer that is there: a folder of a saved one, or a vocab.txt of WordPieces (or a folder with one)."""

    path: str | Path
    lowercase: bool = True  # of a vocab.txt; a saved tokenizer knows

    @property
    def _pieces(self) -> Path | None:
        """The vocab.txt, or None: a saved tokenizer."""
        path = Path(self.path)
        if path.is_dir():
            saved = (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file()
            return None if saved else path / "vocab.txt"
        return path

    def check(self) -> None:
        """Check that the files are there."""
        if self._pieces is not None and not self._pieces.is_file():
            raise FileNotFoundError(
                f"vocabulary {str(self.path)!r} is no tokenizer's folder and no vocab.txt: give one of them"
            )

    def inputs(self) -> dict[str, str]:
        """Give the sha256 of each file."""
        files = sorted(Path(self.path).glob("*.*")) if self._pieces is None else [self._pieces]
        return {f"{file.parent.name}/{file.name}": file_digest(file) for file in files}

    def tokenizer(self) -> Any:
        """Load the tokenizer."""
        self.check()
        if self._pieces is None:
            from essential_sparsity.backbones.language import LanguageBackbone

            return LanguageBackbone(path=self.path).tokenizer()
        pieces = list(_read_pieces(self._pieces))
        if lacking := [name for name in SPECIAL if name not in pieces]:
            raise ValueError(f"{self._pieces} lacks {', '.join(lacking)}: give a vocabulary of BERT's kind")
        return wordpiece_tokenizer(pieces, lowercase=self.lowercase)


@lru_cache(maxsize=8)
def _read_pieces(file: Path) -> tuple[str, ...]:
    return tuple(file.read_text("utf-8").rstrip("\n").split("\n"))


# --- training ---------------------------------------------------------------------------------------------------------


def word_counts(texts: Iterable[str]) -> Counter[str]:
    """Count words as BERT's uncased tokenizer splits them: lower case, no accents, punctuation apart.

    Neither step looks across blanks, so each distinct string between blanks is normalised once, not each occurrence.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalise, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text.split())
    words: Counter[str] = Counter()
    for string, count in raw.items():
        for word, _ in split.pre_tokenize_str(normalise.normalize_str(string)):
            words[word] += count
    return words


def wordpieces(words: Mapping[str, int], size: int) -> list[str]:
    """Train WordPiece: special pieces, characters, then merges of the most frequent pair, ties by the alphabet.

    A word begins as its letters, all but the first marked as continuing (`##`). At most 1,000 characters, and at most
    a quarter of the pieces, are kept; words with others are [UNK]. Sennrich et al. 2016, with BERT's spelling.
    """
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    most = min(MOST_CHARACTERS, (size - len(SPECIAL)) // 4)
    kept = set(sorted(characters, key=lambda character: (-characters[character], character))[:most])
    usable = sorted(word for word in words if len(word) <= LONGEST_WORD and kept.issuperset(word))
    spelt = [[word[0], *(f"##{character}" for character in word[1:])] for word in usable]
    letters = [*sorted(kept), *sorted(f"##{character}" for character in kept if character.isalnum())]
    letters += sorted({piece for word in spelt for piece in word} - set(letters))
    return [*SPECIAL, *_Merging(spelt, [words[word] for word in usable], letters).pieces_until(size - len(SPECIAL))]


class _Merging:
    """Words as lists of pieces, how often each pair of neighbours occurs, and in which words."""

    def __init__(self, words: Sequence[Sequence[str]], counts: Sequence[int], pieces: Sequence[str]) -> None:
        self.pieces = list(pieces)
        self.ids = {piece: index for index, piece in enumerate(pieces)}
        self.words = [[self.ids[piece] for piece in word] for word in words]
        self.counts = counts
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for index, word in enumerate(self.words):
            self._count(index, word, counts[index])
        self.heap: list[tuple[int, str, str, tuple[int, int]]] = []
        self._push(self.pairs)

    def pieces_until(self, size: int) -> list[str]:
        """Merge until there are `size` pieces or no frequent pair is left."""
        while len(self.pieces) < size and (pair := self._most_frequent()) is not None:
            self._merge(pair)
        return self.pieces

    def _count(self, index: int, word: Sequence[int], count: int) -> None:
        for pair in pairwise(word):
            self.pairs[pair] += count
            self.where[pair].add(index)

    def _push(self, pairs: Iterable[tuple[int, int]]) -> None:
        for pair in pairs:
            first, second = pair
            heapq.heappush(self.heap, (-self.pairs[pair], self.pieces[first], self.pieces[second], pair))

    def _most_frequent(self) -> tuple[int, int] | None:
        """Take the most frequent pair off the heap; an entry whose count has fallen goes back with its own."""
        while self.heap:
            negative, _, _, pair = heapq.heappop(self.heap)
            count = self.pairs.get(pair, 0)
            if count == -negative:
                return pair if count >= FEWEST else None
            if 0 < count < -negative:
                self._push([pair])
        return None

    def _merge(self, pair: tuple[int, int]) -> None:
        """Make one piece of the pair wherever it stands; only pairs with the new piece can become more frequent."""
        text = self.pieces[pair[0]] + self.pieces[pair[1]].removeprefix("##")
        if text not in self.ids:
            self.ids[text] = len(self.pieces)
            self.pieces.append(text)
        new, grown = self.ids[text], set()
        for index in self.where.pop(pair):
            before, count = self.words[index], self.counts[index]
            for old in pairwise(before):
                self.pairs[old] -= count
                if old != pair:
                    self.where[old].discard(index)
            after = self.words[index] = _joined(before, pair, new)
            self._count(index, after, count)
            grown.update(found for found in pairwise(after) if new in found)
        del self.pairs[pair]
        self._push(sorted(grown))


def _joined(word: Sequence[int], pair: tuple[int, int], new: int) -> list[int]:
    """Replace each occurrence of the pair, from the left, by the new piece."""
    joined, index = [], 0
    while index < len(word):
        if index + 1 < len(word) and (word[index], word[index + 1]) == pair:
            joined.append(new)
            index += 2
        else:
            joined.append(word[index])
            index += 1
    return joined
