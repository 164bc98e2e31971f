"""Windows over a text: every token predicted once, with the perplexity that transformers' documentation computes."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as functional

from essential_sparsity.analysis.metrics import METRICS
from essential_sparsity.backbones.tiny import TinyLanguageBackbone
from essential_sparsity.data.corpus import EmbeddedCorpus
from essential_sparsity.data.plain_text import PlainText, Separated, WholeText, windows_of
from essential_sparsity.data.tokens import leading_ids
from essential_sparsity.predictions import predict
from essential_sparsity.tasks.causal_lm import CausalLanguageModel
from essential_sparsity.training import fit

OPT = TinyLanguageBackbone(family="opt", dropout=0.0)


class Model:
    """What windows ask a backbone's preprocessing."""

    max_length, pad_id = 8, 0


@pytest.fixture(scope="module")
def preprocessing() -> Any:
    return OPT.preprocessing()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = ["The first line of a text .", "", "Another one , a little longer than the first .", None, "The end ."] * 9
    pq.write_table(pa.table({"text": rows}), tmp_path / "text.parquet")
    return tmp_path / "text.parquet"


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num, length, stride", list(itertools.product((2, 3, 7, 8, 9, 20, 21), (3, 8), (1, 2))))
def test_every_token_but_the_first_is_predicted_once_with_the_longest_context(
    num: int, length: int, stride: int
) -> None:
    ids = np.arange(100, 100 + num, dtype=np.int32)
    windows = windows_of(ids, Model(), max_length=length, stride=stride)
    batch = windows.batch(np.arange(len(windows.labels)), epoch=0, seed=None)
    rows, columns = np.divmod(batch["positions"].numpy(), batch["input_ids"].shape[1])
    at = windows.starts[rows] + columns + 1  # of each predicted token in the text
    assert sorted(at) == list(range(1, num))
    assert (ids[at] == batch["labels"].numpy()).all()
    assert (columns + 1 >= np.minimum(at, length - stride)).all()  # tokens that it is predicted from
    assert windows.lengths.max() <= length and windows.ends[-1] == num


def documented(model: Any, ids: torch.Tensor, max_length: int, stride: int) -> float:
    """Strided perplexity as transformers' page "Perplexity of fixed-length models" has it, each token counted once."""
    total, count, before = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        wanted = ids[:, begin:end].clone()
        wanted[:, : -(end - before)] = -100
        logits = model(ids[:, begin:end]).logits[0, :-1]
        total += float(functional.cross_entropy(logits, wanted[0, 1:], ignore_index=-100, reduction="sum"))
        count += int((wanted[0, 1:] != -100).sum())
        before = end
        if end == ids.shape[1]:
            break
    return -total / count


@pytest.mark.parametrize("stride", [3, 16, 31])
def test_perplexity_is_the_documented_one(stride: int, file: Path, preprocessing: Any, tmp_path: Path) -> None:
    data = WholeText(path=file, max_length=32, stride=stride, evaluation_batch_size=3, cache=tmp_path / "cache")
    data.check()
    data.prepare(preprocessing)
    model = OPT.build(num_labels=0, seed=0, head="causal_lm")
    rows = predict(CausalLanguageModel(model), data.evaluation_dataloaders())["test"]
    whole = "\n\n".join(text or "" for text in pq.read_table(file)["text"].to_pylist())
    ids = torch.tensor(
        [preprocessing.tokenizer(whole)["input_ids"][:-1]]
    )  # this tokenizer ends texts, decoders' do not
    with torch.no_grad():
        wanted = documented(model.eval(), ids, 32, stride)
    import pandas as pd

    assert METRICS["perplexity"].value(pd.DataFrame(rows)) == pytest.approx(wanted, abs=1e-5)
    assert rows["num_tokens"].sum() == ids.shape[1] - 1


def test_what_leaves_tokens_without_context_is_refused() -> None:
    ids = np.arange(20, dtype=np.int32)
    for stride in (0, 8, 9, True, 2.0):
        with pytest.raises(ValueError, match=r"data\.stride=.* lies outside 1 … 7"):
            windows_of(ids, Model(), max_length=None, stride=stride)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.max_length=9 exceeds the 8 tokens that the model takes"):
        windows_of(ids, Model(), max_length=9, stride=None)
    with pytest.raises(ValueError, match="the text has 1 tokens, so that there is nothing to predict"):
        windows_of(ids[:1], Model(), max_length=None, stride=None)


def test_what_comes_before_a_text_is_the_tokenizer_s_own(preprocessing: Any) -> None:
    assert leading_ids(preprocessing.tokenizer) == [preprocessing.tokenizer.cls_token_id]


# --- training ---------------------------------------------------------------------------------------------------------


def test_blocks_begin_as_texts_do_and_rows_end_in_a_separator(preprocessing: Any) -> None:
    data = PlainText(EmbeddedCorpus(), block_length=16, separator=" end-of-row ", batch_size=4, num_evaluation_rows=8)
    data.prepare(preprocessing)
    data.seed(0)
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (4, 16)
    assert set(batch["input_ids"][:, 0].tolist()) == {preprocessing.tokenizer.cls_token_id}
    flat = batch["input_ids"].flatten()
    assert torch.equal(flat[batch["positions"] + 1], batch["labels"]) and len(batch["labels"]) == 4 * 15
    texts = Separated(EmbeddedCorpus(), "|").documents("train").texts.to_pylist()
    assert all(text.endswith("|") for text in texts)
    assert Separated(EmbeddedCorpus(), "|").digest("train") != Separated(EmbeddedCorpus(), "").digest("train")
    windows = data.evaluation_dataloaders()["held_out"]
    assert max(batch["input_ids"].shape[1] for batch in windows) == 16
    assert data.num_tokens()[1] == 8 * 16


def test_fewer_data_are_nested_and_evaluated_on_the_same_text(preprocessing: Any) -> None:
    found = []
    for fraction in (1.0, 0.5):
        data = PlainText(EmbeddedCorpus(), block_length=32, fraction=fraction)
        data.prepare(preprocessing)
        found.append((data.num_train_rows, list(data.evaluation_dataloaders()["held_out"])))
    assert found[1][0] < 0.6 * found[0][0]
    same = zip(found[0][1], found[1][1], strict=True)
    assert all(torch.equal(one["input_ids"], other["input_ids"]) for one, other in same)


# --- what is wrong is told --------------------------------------------------------------------------------------------


def test_a_text_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"texts\.parquet' does not exist: did you mean 'text\.parquet'"):
        WholeText(path=file.with_name("texts.parquet")).check()
    with pytest.raises(ValueError, match="has no column 'txt': did you mean 'text'"):
        WholeText(path=file, column="txt").check()
    with pytest.raises(ValueError, match=r"there is no text to evaluate: give data\.path"):
        WholeText()


def test_a_text_that_is_only_evaluated_is_not_trained_on(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data=WholeText has rows to evaluate, none to train on"):
        fit(OPT, WholeText(path=file), CausalLanguageModel, run=tmp_path / "run")
    data = WholeText(path=file)
    for ask in (data.train_dataloader, data.training_rows):
        with pytest.raises(ValueError, match="WholeText has no training rows"):
            ask()


def test_wikitext_of_the_local_folder(es_data: Path, preprocessing: Any, tmp_path: Path) -> None:
    data = WholeText(
        hub_id="Salesforce/wikitext", subset="wikitext-2-raw-v1", root=es_data, max_length=512, cache=tmp_path
    )
    data.check()
    data.prepare(preprocessing)
    assert set(data.inputs()) == {"wikitext-2-raw-v1/test.parquet"}
    assert data.num_evaluation_rows > 1000
