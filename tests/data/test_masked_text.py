"""Masked text: whole documents by exact nested shares, blocks without padding, masks by (seed, epoch, row) alone."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from essential_sparsity.backbones.language import TextPreprocessing
from essential_sparsity.backbones.tiny import wordpiece_tokenizer
from essential_sparsity.data.block_labels import NextBlock, SourceBlocks
from essential_sparsity.data.blocks import Blocks, choose_documents
from essential_sparsity.data.corpus import EmbeddedCorpus, TextCorpus
from essential_sparsity.data.masked_text import MaskedText, choose_tokens, choose_words, replaced
from essential_sparsity.data.tokens import TokenisedCorpus, encode, tokenise_corpus

WORDS = [f"w{index}" for index in range(200)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##x"]
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def words() -> TextPreprocessing:
    """Give a tokenizer in which a word is a token, and an x behind it another one."""
    return TextPreprocessing(wordpiece_tokenizer(PIECES), 512)


def write(file: Path, lengths: list[int], *, repeat: int = 1) -> Path:
    """Write documents of these many words, a document in `repeat` rows under one source."""
    rows, sources, generator = [], [], np.random.RandomState(0)
    for index, length in enumerate(lengths):
        for part in np.array_split(generator.randint(200, size=length), repeat):
            rows.append(" ".join(WORDS[word] for word in part))
            sources.append(f"book {index}")
    pq.write_table(pa.table({"text": rows, "source": sources}), file)
    return file


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextCorpus:
    """Give 20 documents of 60 to 250 words, three of another split."""
    monkeypatch.setenv("ES_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "train.parquet", [60 + 10 * index for index in range(20)], repeat=4)
    file = write(tmp_path / "validation.parquet", [100, 150, 90])
    table = pq.read_table(file)
    pq.write_table(table.set_column(1, "source", pa.array(["a", "b", "c"])), file)
    return TextCorpus(path=tmp_path)


def masked(corpus: Any, preprocessing: TextPreprocessing, seed: int = 0, **options: Any) -> MaskedText:
    data = MaskedText(corpus, **{"block_length": 18, "batch_size": 8, **options})
    data.check()
    data.prepare(preprocessing)
    data.seed(seed)
    return data


# --- documents --------------------------------------------------------------------------------------------------------


def test_a_fraction_is_the_fewest_whole_documents_that_reach_it() -> None:
    lengths = np.array([10, 20, 30, 40])
    for seed in range(5):
        order = np.random.RandomState(seed).permutation(4)
        for fraction in ("0.1", "0.3", "0.6", "0.99", "1.0"):
            chosen, none = choose_documents(lengths, fraction=Fraction(fraction), held_out=None, subset_seed=seed)
            wanted, tokens = [], 0
            for document in order:
                if tokens >= Fraction(fraction) * 100:
                    break
                wanted.append(int(document))
                tokens += int(lengths[document])
            assert chosen.tolist() == wanted and not len(none)


def test_fractions_are_nested_and_share_what_is_held_out() -> None:
    lengths = np.random.RandomState(1).randint(1, 500, size=100)
    held_out, before = None, []
    for fraction in ("0.6", "0.7", "0.8", "0.9", "1.0"):
        train, others = choose_documents(lengths, fraction=Fraction(fraction), held_out=Fraction("0.1"), subset_seed=3)
        assert train[: len(before)].tolist() == before and len(train) > len(before)
        assert held_out is None or others.tolist() == held_out
        assert not set(train) & set(others)
        before, held_out = train.tolist(), others.tolist()
    of_other_seeds = [
        choose_documents(lengths, fraction=Fraction(1), held_out=Fraction("0.1"), subset_seed=seed) for seed in range(4)
    ]
    assert all(others.tolist() == held_out for _, others in of_other_seeds)
    assert len({tuple(train) for train, _ in of_other_seeds}) == 4
    assert len(before) + len(held_out or []) == 100
    assert 0.1 <= lengths[held_out].sum() / lengths.sum() < 0.15


def test_shares_are_exact_decimals() -> None:
    lengths = np.full(10, 10)  # 0.29 · 100 in floats is 28.999999999999996
    for fraction, documents in (("0.3", 3), ("0.29", 3), ("0.31", 4), ("0.7", 7)):
        assert len(choose_documents(lengths, fraction=Fraction(fraction), held_out=None, subset_seed=0)[0]) == documents


def test_a_document_is_all_rows_of_one_source_in_order(tmp_path: Path) -> None:
    table = pa.table({"text": ["a1", "b1", "a2", None, "b2"], "source": ["a", "b", "a", None, "b"]})
    pq.write_table(table, tmp_path / "mixed.parquet")
    documents = TextCorpus(path=tmp_path / "mixed.parquet").documents("train")
    assert documents.texts.to_pylist() == ["a1", "a2", "b1", "b2", None]
    assert documents.offsets.tolist() == [0, 2, 4, 5]
    rows = TextCorpus(path=tmp_path / "mixed.parquet", source=None, document_rows=2).documents("train")
    assert rows.texts.to_pylist() == table["text"].to_pylist() and rows.offsets.tolist() == [0, 2, 4, 5]


def test_tokens_are_written_once_and_found_again(
    corpus: TextCorpus, words: TextPreprocessing, monkeypatch: Any
) -> None:
    first = tokenise_corpus(corpus, "train", preprocessing=words)
    monkeypatch.setattr(TextCorpus, "documents", None)
    again = tokenise_corpus(corpus, "train", preprocessing=words)
    assert isinstance(again.ids, np.memmap) and again.ids.dtype == np.uint16
    assert np.array_equal(first.ids, again.ids)
    assert again.lengths.tolist() == [60 + 10 * index for index in range(20)]


def test_tokens_are_those_of_the_rows(corpus: TextCorpus, words: TextPreprocessing) -> None:
    stored = tokenise_corpus(corpus, "train", preprocessing=words)
    texts = pq.read_table(Path(str(corpus.path)) / "train.parquet")["text"].to_pylist()
    assert stored.ids.tolist() == [number for text in texts for number in encode(words.tokenizer, [text])[0]]


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_are_the_documents_one_after_another_cut_at_equal_length() -> None:
    tokens = TokenisedCorpus(np.arange(100, dtype=np.uint16), np.array([0, 30, 30, 45, 100]))
    blocks = Blocks(tokens, np.array([3, 0, 1, 2]), 7)
    stream = [*range(45, 100), *range(30), *range(30, 45)]
    wanted = [stream[start : start + 7] for start in range(0, 98, 7)]
    assert len(blocks) == 14
    assert blocks.read(np.arange(14)).tolist() == wanted
    assert blocks.read(np.array([9, 2])).tolist() == [wanted[9], wanted[2]]
    middles = [stream[7 * row + 3] for row in range(14)]
    assert blocks.document_of(np.arange(14)).tolist() == [3 if m >= 45 else 0 if m < 30 else 2 for m in middles]
    assert len(set(blocks.content.tolist())) == 14


def test_blocks_of_a_smaller_fraction_are_blocks_of_a_larger_one(corpus: TextCorpus, words: TextPreprocessing) -> None:
    some, every = masked(corpus, words, fraction=0.6), masked(corpus, words, fraction=1.0)
    assert some.num_train_rows < every.num_train_rows
    rows = np.arange(some.num_train_rows)
    ours, theirs = (data.training_rows().examples.blocks for data in (some, every))  # type: ignore[attr-defined]
    assert np.array_equal(ours.read(rows), theirs.read(rows))
    assert some.evaluation_rows == every.evaluation_rows == {"held_out": 340 // 16}
    assert every.num_tokens() == (18 * every.num_train_rows, 18 * (340 // 16))


def test_without_another_split_documents_are_held_out(words: TextPreprocessing, corpus: TextCorpus) -> None:
    alone = TextCorpus(path=corpus.path, held_out_split=None)
    first, other = masked(alone, words, holdout_share=0.2), masked(alone, words, holdout_share=0.2, fraction=0.5)
    for data in (first, other):
        batch = next(iter(data.evaluation_dataloaders()["held_out"]))
        assert torch.equal(batch["input_ids"], next(iter(first.evaluation_dataloaders()["held_out"]))["input_ids"])
    assert first.num_train_rows < masked(corpus, words).num_train_rows


# --- masks ------------------------------------------------------------------------------------------------------------


def test_the_lowest_scores_of_each_row_are_chosen() -> None:
    scores = np.array([[5, 1, 4, 2], [0, 9, 8, 7]], np.uint64)
    assert choose_tokens(scores, 2).tolist() == [[False, True, False, True], [True, False, False, True]]


def test_whole_words_are_chosen_until_the_number_is_reached() -> None:
    continues = np.array([[True, False, True, True, False, False]])  # words: 0 | 1 2 3 | 4 | 5
    scores = np.array([[30, 10, 0, 0, 20, 40]], np.uint64)  # a word's score is its first piece's
    for num, wanted in ((1, {1, 2, 3}), (3, {1, 2, 3}), (4, {1, 2, 3, 4}), (5, {0, 1, 2, 3, 4})):
        assert set(np.flatnonzero(choose_words(scores, continues, num)[0])) == wanted


def test_whole_words_equal_going_through_the_words_one_by_one() -> None:
    generator = np.random.RandomState(0)
    continues, scores = generator.rand(50, 40) < 0.4, generator.permutation(2000).reshape(50, 40).astype(np.uint64)
    chosen = choose_words(scores, continues, 6)
    for row in range(50):
        begins = [column for column in range(40) if column == 0 or not continues[row, column]]
        words = [range(first, last) for first, last in zip(begins, [*begins[1:], 40], strict=True)]
        wanted: set[int] = set()
        for word in sorted(words, key=lambda word: scores[row, word[0]]):
            if len(wanted) >= 6:
                break
            wanted |= set(word)
        assert set(np.flatnonzero(chosen[row])) == wanted


def test_a_batch_has_its_tokens_back_under_the_masks(corpus: TextCorpus, words: TextPreprocessing) -> None:
    data = masked(corpus, words)
    blocks = data.training_rows().examples.blocks  # type: ignore[attr-defined]
    for batch in data.train_dataloader():
        ids, rows = batch["input_ids"], batch["row"].numpy()
        assert ids.shape == (len(rows), 18) and ids[:, 0].eq(CLS).all() and ids[:, -1].eq(SEP).all()
        per_row = torch.bincount(batch["positions"] // 18, minlength=len(rows))
        assert per_row.eq(2).all()  # 15 % of 16
        assert torch.equal(batch["positions"], batch["positions"].unique())
        restored = ids.flatten().index_copy(0, batch["positions"], batch["labels"]).reshape(ids.shape)
        assert restored[:, 1:-1].tolist() == blocks.read(rows).tolist()


def test_masks_are_a_function_of_seed_epoch_and_row(corpus: TextCorpus, words: TextPreprocessing) -> None:
    first, again, other = (masked(corpus, words, seed) for seed in (1, 1, 2))
    rows = np.array([3, 7, 1])

    def batch(data: MaskedText, seed: int, epoch: int, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return data.training_rows().examples.batch(rows, epoch=epoch, seed=seed)

    ours = batch(first, 1, 5, rows)
    alone = batch(again, 1, 5, rows[1:2])  # whatever else is in the batch
    assert torch.equal(ours["input_ids"][1], alone["input_ids"][0])
    assert all(torch.equal(value, batch(again, 1, 5, rows)[name]) for name, value in ours.items())
    assert not torch.equal(ours["input_ids"], batch(first, 1, 6, rows)["input_ids"])
    assert not torch.equal(ours["input_ids"], batch(other, 2, 5, rows)["input_ids"])
    fixed = [next(iter(data.evaluation_dataloaders()["held_out"])) for data in (first, other)]
    assert all(torch.equal(fixed[0][name], fixed[1][name]) for name in fixed[0])


def test_of_a_hundred_masked_tokens_eighty_are_hidden_ten_replaced_ten_kept() -> None:
    bits = np.random.RandomState(0).randint(0, 2**63, size=100_000, dtype=np.int64).astype(np.uint64) << np.uint64(1)
    tokens = np.full(100_000, 7)
    found = replaced(tokens, bits, mask_id=MASK, vocabulary_size=1000)
    assert abs((found == MASK).mean() - 0.801) < 0.005  # a random token is [MASK] at times
    others = found[(found != MASK) & (found != 7)]
    assert abs(len(others) / 1e5 - 0.1) < 0.005
    assert others.min() < 10 and others.max() > 990 and abs(others.mean() - 500) < 15
    ends = np.array([0, 2**63, 2**64 - 1], np.uint64)
    assert replaced(tokens[:3], ends, mask_id=4, vocabulary_size=9).tolist() == [4, 4, 7]


def test_masks_fall_on_every_place_and_token_alike(corpus: TextCorpus, words: TextPreprocessing) -> None:
    data = masked(corpus, words, num_masked=4)
    rows = np.arange(data.num_train_rows)
    counts = np.zeros(18, int)
    for epoch in range(50):
        batch = data.training_rows().examples.batch(rows, epoch=epoch, seed=0)
        counts += np.bincount(batch["positions"].numpy() % 18, minlength=18)
    assert counts[0] == counts[17] == 0
    assert np.abs(counts[1:17] / (50 * len(rows)) - 0.25).max() < 0.03


def test_whole_word_masks_need_a_vocabulary_of_word_pieces(corpus: TextCorpus, words: TextPreprocessing) -> None:
    data = masked(corpus, words, whole_word=True, num_masked=3)
    num = sum(len(batch["positions"]) for batch in data.train_dataloader())
    assert num == 3 * data.num_train_rows  # here a word is a token
    plain = TextPreprocessing(wordpiece_tokenizer(PIECES[:-1]), 512)
    with pytest.raises(ValueError, match=r"whole_word=true needs a WordPiece vocabulary"):
        next(iter(masked(corpus, plain, whole_word=True).train_dataloader()))


# --- other objectives on the same blocks ------------------------------------------------------------------------------


def test_source_blocks_ask_for_the_document(corpus: TextCorpus, words: TextPreprocessing) -> None:
    data = SourceBlocks(corpus, block_length=18, batch_size=8, num_holdout_rows=20)
    data.prepare(words)
    assert data.num_labels == 20 and data.evaluation_rows == {"holdout": 20}
    train, same = data.training_rows(), masked(corpus, words).training_rows()
    blocks = same.examples.blocks  # type: ignore[attr-defined]
    assert {len(train) + 20} == {len(blocks)}
    batch = train.batch(np.arange(5), 0)
    assert batch["input_ids"][:, 1:-1].tolist() == blocks.read(train.rows[:5]).tolist()
    assert batch["labels"].tolist() == blocks.document_of(train.rows[:5]).tolist()
    assert batch["attention_mask"].all()


def test_pairs_are_halves_of_one_block_or_of_two(corpus: TextCorpus, words: TextPreprocessing) -> None:
    data = NextBlock(corpus, block_length=19, batch_size=8)
    data.prepare(words)
    train = data.training_rows()
    own = train.examples.blocks  # type: ignore[attr-defined]
    batch = train.examples.batch(np.arange(len(train)), epoch=0, seed=1)
    texts, ids = own.read(np.arange(len(train))), batch["input_ids"].numpy()
    assert (ids[:, [0, 9, 18]] == [CLS, SEP, SEP]).all()
    assert np.array_equal(ids[:, 1:9], texts[:, :8])
    true = (ids[:, 10:18] == texts[:, 8:]).all(1)
    assert np.array_equal(true, batch["labels"].numpy() == 1)
    assert 0.35 < true.mean() < 0.65
    assert all((texts[:, 8:] == half).all(1).any() for half in ids[~true, 10:18])
    later = train.examples.batch(np.arange(len(train)), epoch=1, seed=1)
    assert not torch.equal(batch["labels"], later["labels"])


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 1.5, -0.1, True, "most"])
def test_a_fraction_outside_0_1_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"data_fraction=.* lies outside \(0, 1\]: give a share"):
        MaskedText(EmbeddedCorpus(), fraction=value)


def test_wrong_numbers_are_named() -> None:
    for options, words in [
        ({"block_length": 4}, r"data\.block_length=4 is no whole number of at least 8"),
        ({"mask_share": 0.0}, r"data\.mask_share=0\.0 lies outside \(0, 1\)"),
        ({"num_masked": 126}, r"data\.num_masked=126 lies outside 1 … 125"),
        ({"holdout_share": 0}, r"data\.holdout_share=0 lies outside"),
        ({"batch_size": 0}, r"data\.batch_size=0"),
    ]:
        with pytest.raises(ValueError, match=words):
            MaskedText(EmbeddedCorpus(), **options)
    with pytest.raises(ValueError, match=r"num_holdout_rows=0 leaves nothing to evaluate"):
        SourceBlocks(EmbeddedCorpus(), num_holdout_rows=0)


def test_wrong_files_are_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    def saved(name: str, **columns: Any) -> TextCorpus:
        pq.write_table(pa.table(columns), tmp_path / name)
        return TextCorpus(path=tmp_path / name)

    with pytest.raises(ValueError, match=r"empty\.parquet is an empty corpus, it has no rows"):
        saved("empty.parquet", text=pa.array([], pa.string())).check()
    with pytest.raises(ValueError, match=r"column 'text' of .*numbers\.parquet holds int64, not text"):
        saved("numbers.parquet", text=[1, 2]).check()
    with pytest.raises(ValueError, match=r"has no column 'text': did you mean 'texts'\?"):
        saved("other.parquet", texts=["a"]).check()
    with pytest.raises(FileNotFoundError, match=r"no_such_folder' does not exist"):
        TextCorpus(path=tmp_path / "no_such_folder").check()
    with pytest.raises(FileNotFoundError, match=r"has no train\.parquet"):
        TextCorpus(path=tmp_path).check()
    with pytest.raises(ValueError, match=r"no path and no hub_id: give corpus\.path"):
        TextCorpus(name="books")
    with pytest.raises(ValueError, match=r"document_rows=0"):
        TextCorpus(path=tmp_path, document_rows=0)
    saved("train.parquet", text=["a", "b"], source=["x", "y"])
    saved("validation.parquet", text=["a"], source=["y"])
    with pytest.raises(ValueError, match=r"validation\.parquet shares 1 documents with train, first 'y'"):
        TextCorpus(path=tmp_path).check()


def test_a_hub_that_does_not_answer_is_one_line_with_the_remedy() -> None:
    corpus = TextCorpus(hub_id="nobody/nothing")
    corpus.check()  # what is on the hub is checked when it is read
    for attempt in (corpus.splits, corpus.inputs, lambda: corpus.documents("train")):
        with pytest.raises(
            ValueError,
            match=r"'nobody/nothing' (cannot be (read|reached)|is not in the local cache).*paths\.data=<folder>",
        ) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_corpus_shorter_than_a_block_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: TextPreprocessing
) -> None:
    monkeypatch.setenv("ES_CACHE", str(tmp_path / "cache"))
    short = TextCorpus(path=write(tmp_path / "short.parquet", [10, 5]))
    with pytest.raises(
        ValueError, match=r"the 1 training documents hold .* tokens, less than one block of data\.block"
    ):
        masked(short, words)
    with pytest.raises(ValueError, match=r"a corpus of 1 document has none to hold out"):
        masked(TextCorpus(path=write(tmp_path / "one.parquet", [100])), words)
    with pytest.raises(ValueError, match=r"block_length=600 exceeds the 512 tokens"):
        masked(short, words, block_length=600)
    pq.write_table(pa.table({"text": ["", None]}), tmp_path / "blank.parquet")
    with pytest.raises(ValueError, match=r"hold 0 tokens, less than one block"):
        masked(TextCorpus(path=tmp_path / "blank.parquet"), words)


def test_a_tokenizer_without_a_mask_is_refused(corpus: TextCorpus) -> None:
    from essential_sparsity.backbones.tiny import TinyLanguageBackbone

    preprocessing = TinyLanguageBackbone(family="opt").preprocessing()
    preprocessing.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token: choose a backbone of BERT's kind"):
        masked(corpus, preprocessing)
    with pytest.raises(ValueError, match="the backbone reads images"):
        MaskedText(corpus).prepare(object())


@pytest.mark.real
def test_the_real_books_are_documents_of_paragraphs(es_data: Path) -> None:
    books = TextCorpus(name="books", root=es_data)
    books.check()
    assert books.splits() == ["train", "validation"]
    assert len(books.documents("train").offsets) == 178
    assert len(books.documents("validation").offsets) == 4
