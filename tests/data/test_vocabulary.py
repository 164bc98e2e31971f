"""Vocabularies are a pure function of the corpus: WordPiece merges against counting everything anew at each step."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from essential_sparsity.backbones.tiny import SPECIAL
from essential_sparsity.data.corpus import EmbeddedCorpus, TextCorpus
from essential_sparsity.data.vocabulary import GivenVocabulary, TrainedVocabulary, word_counts, wordpieces

TEXT = "low lower lowest newer wider widest slow slower the the the then there " * 3


def merged_slowly(words: dict[str, int], size: int) -> list[str]:
    """Count every pair of every word anew before each merge: the definition."""
    spelt = {word: [word[0], *(f"##{letter}" for letter in word[1:])] for word in words}
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    while len(pieces) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in zip(spelt[word], spelt[word][1:], strict=False):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        new = best[0] + best[1][2:]
        for word, parts in spelt.items():
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == best:
                    joined[-1] = new
                else:
                    joined.append(part)
            spelt[word] = joined
        if new not in pieces:
            pieces.append(new)
    return pieces


@pytest.mark.parametrize("size", [70, 90, 400])
def test_merges_equal_counting_everything_anew(size: int) -> None:
    words = {"aaaaa": 4, "banana": 3, "nab": 2, "ab": 7, **word_counts([TEXT])}
    assert wordpieces(words, size) == merged_slowly(words, size)


def test_merges_of_real_words_equal_counting_everything_anew() -> None:
    texts = next(EmbeddedCorpus().documents("train").chunks())[:3]
    words = {word: count for word, count in word_counts(texts).items() if word.isalpha()}
    assert len(words) > 500
    assert wordpieces(words, 240) == merged_slowly(words, 240)


def test_words_are_those_of_berts_tokenizer() -> None:
    words = word_counts(["The café’s (naïve) CAFÉ, the-end_1\tfoo", "the"])
    once = ["’", "s", "(", "naive", ")", ",", "-", "end", "_", "1", "foo"]
    assert words == {"the": 3, "cafe": 2, **dict.fromkeys(once, 1)}


def test_rare_characters_leave_room_for_pieces() -> None:
    words = {"ab": 100, **{chr(0x4E00 + index): 1 for index in range(200)}}
    pieces = wordpieces(words, 64)
    assert len(pieces) <= 64 and "ab" in pieces


def test_the_embedded_vocabulary_has_4096_pieces_and_reads_its_corpus() -> None:
    corpus = EmbeddedCorpus()
    tokenizer = TrainedVocabulary(corpus, 4096).tokenizer()
    assert len(tokenizer) == 4096
    texts = next(corpus.documents("train").chunks())
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert sum(map(len, ids)) < 0.35 * sum(map(len, texts))  # three letters a token and more
    assert tokenizer.decode(tokenizer("unhashable Python")["input_ids"]) == "[CLS] unhashable python [SEP]"


def test_every_process_trains_the_same_vocabulary(tmp_path: Path) -> None:
    code = (
        "from essential_sparsity.data.corpus import EmbeddedCorpus\n"
        "from essential_sparsity.data.vocabulary import TrainedVocabulary\n"
        "import hashlib; pieces = TrainedVocabulary(EmbeddedCorpus(), 1024).pieces()\n"
        "print(hashlib.sha256(chr(10).join(pieces).encode()).hexdigest())"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "ES_CACHE": str(tmp_path / seed)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        found.add(done.stdout)
    assert len(found) == 1


def test_a_vocabulary_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ES_CACHE", str(tmp_path))
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [TEXT, None]}), file)
    vocabulary = TrainedVocabulary(TextCorpus(path=file), 64)
    vocabulary.check()
    first = vocabulary.pieces()
    monkeypatch.setattr(TextCorpus, "documents", None)  # nothing is read again
    assert vocabulary.pieces() == first
    assert list(vocabulary.inputs()) == ["a/a.parquet"]


def test_a_given_vocabulary_is_a_folder_or_a_list_of_pieces(tmp_path: Path) -> None:
    trained = TrainedVocabulary(EmbeddedCorpus(), 1024)
    text = "A sequence of mutable objects."
    (tmp_path / "vocab.txt").write_text("\n".join(trained.pieces()) + "\n")
    trained.tokenizer().save_pretrained(tmp_path / "saved")
    for path in (tmp_path / "vocab.txt", tmp_path, tmp_path / "saved"):
        given = GivenVocabulary(path)
        given.check()
        assert given.tokenizer()(text)["input_ids"] == trained.tokenizer()(text)["input_ids"]
        assert given.inputs()
    cased = GivenVocabulary(tmp_path / "vocab.txt", lowercase=False)
    assert cased.tokenizer()(text)["input_ids"] != trained.tokenizer()(text)["input_ids"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    for size in (10, 40_000, 0.5, True):
        with pytest.raises(ValueError, match=r"vocabulary\.size=.* lies outside 64 … 30,522"):
            TrainedVocabulary(EmbeddedCorpus(), size)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"nowhere' is no tokenizer's folder and no vocab\.txt"):
        GivenVocabulary(tmp_path / "nowhere").check()
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"vocab\.txt lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"):
        GivenVocabulary(tmp_path).tokenizer()


@pytest.mark.real
def test_berts_own_vocabulary_can_be_given(es_data: Path) -> None:
    tokenizer = GivenVocabulary(es_data / "tokenizers" / "bert-base-uncased").tokenizer()
    assert len(tokenizer) == 30_522
    assert tokenizer("Hello, world!")["input_ids"] == [101, 7592, 1010, 2088, 999, 102]
