"""A new OPT and its vocabulary: GPT-2's own tokens, whole or the first merged; files that plain transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from essential_sparsity.backbones.language import LanguageBackbone
from essential_sparsity.backbones.new_opt import SHAPES, NewOpt
from essential_sparsity.data.byte_pairs import BytePairs
from essential_sparsity.data.corpus import EmbeddedCorpus
from essential_sparsity.data.vocabulary import TrainedVocabulary
from essential_sparsity.pruning import prunable_weights


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Give a folder of a vocabulary with four merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = [*sorted(ByteLevel.alphabet()), "th", "the", "Ġthe", "in", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\nĠ the\ni n\n")
    return tmp_path


# --- the vocabulary ---------------------------------------------------------------------------------------------------


def test_texts_begin_as_opt_s_do_and_nothing_is_unknown(small: Path) -> None:
    tokenizer = BytePairs(path=small).tokenizer()
    assert len(tokenizer) == 256 + 4 + 2
    assert tokenizer.convert_ids_to_tokens(tokenizer("in the")["input_ids"]) == ["<|endoftext|>", "in", "Ġthe"]
    for text in ("The Ä 漢 \n\n end", " spaces  "):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.pad_token_id == len(tokenizer) - 1 != tokenizer.eos_token_id


def test_a_smaller_vocabulary_has_the_first_merges(small: Path) -> None:
    tokenizer = BytePairs(path=small, size=256 + 2 + 2).tokenizer()
    assert len(tokenizer) == 260
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("in the", add_special_tokens=False)["input_ids"])
    assert tokens == ["i", "n", "Ġ", "the"]


def test_files_that_are_missing_or_disagree_are_told(small: Path) -> None:
    (small / "merges.txt").write_text("t h\nx y\n")
    with pytest.raises(ValueError, match=r"merges\.txt makes 'xy', which vocab\.json has not"):
        BytePairs(path=small).tokenizer()
    (small / "merges.txt").rename(small / "merge.txt")
    with pytest.raises(FileNotFoundError, match=r"has no merges\.txt: did you mean 'merge\.txt'"):
        BytePairs(path=small).check()
    with pytest.raises(ValueError, match=r"vocabulary\.size=100 is no whole number of at least 258"):
        BytePairs(path=small, size=100)


@pytest.mark.real
def test_the_whole_vocabulary_is_gpt_2_s(es_data: Path) -> None:
    from transformers import GPT2Tokenizer

    files = es_data / "tokenizers" / "gpt2"
    theirs = GPT2Tokenizer(vocab=str(files / "vocab.json"), merges=str(files / "merges.txt"))
    ours = BytePairs(root=es_data).tokenizer()
    text = "Essential sparsity:\n\nHow much of a pre-trained Transformer's weights is needed? 30-50 % are not.  é"
    assert ours(text)["input_ids"] == [50256, *theirs(text)["input_ids"]]
    assert set(BytePairs(root=es_data).inputs()) == {"gpt2/vocab.json", "gpt2/merges.txt"}


# --- the model --------------------------------------------------------------------------------------------------------


def new(small: Path, **options: Any) -> NewOpt:
    return NewOpt(**{"size": "tiny", "vocabulary": BytePairs(path=small), "dropout": 0.0, **options})


def test_a_new_opt_is_a_function_of_its_seed_and_loads_in_plain_transformers(small: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, OPTForCausalLM

    backbone = new(small, config={"max_position_embeddings": 64})
    backbone.check()
    assert backbone.preprocessing().max_length == 64
    model: Any = backbone.build(num_labels=0, seed=1, head="causal_lm")
    again = backbone.build(num_labels=0, seed=1, head="causal_lm")
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    backbone.save(model, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert isinstance(plain, OPTForCausalLM)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), model.parameters(), strict=True))

    there = NewOpt(path=str(tmp_path / "model"), pretrained=True)
    there.check()
    assert there.preprocessing().digest == backbone.preprocessing().digest
    half = LanguageBackbone(path=tmp_path / "model").build(
        num_labels=0, seed=0, head="causal_lm", require_head=True, dtype=torch.bfloat16
    )
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_only_the_blocks_are_prunable(small: Path) -> None:
    backbone = new(small)
    model = backbone.build(num_labels=0, seed=0, head="causal_lm")
    names = list(prunable_weights(model, backbone.architecture(model)))
    assert len(names) == 2 * 6 and all(name.startswith("decoder.layers.") for name in names)


@pytest.mark.parametrize("size", SHAPES)
def test_sizes_have_whole_heads(size: str, small: Path) -> None:
    config = new(small, size=size).model_config()
    assert config.hidden_size % config.num_attention_heads == 0 and config.ffn_dim == 4 * config.hidden_size
    assert config.vocab_size == 262 and config.word_embed_proj_dim == config.hidden_size


def test_a_vocabulary_trained_on_the_corpus_serves_as_well(small: Path) -> None:
    backbone = new(small, vocabulary=TrainedVocabulary(EmbeddedCorpus(), 512))
    assert backbone.model_config().bos_token_id == backbone.tokenizer().cls_token_id
    with pytest.raises(ValueError, match=r"backbone\.size='350m' is no size of OPT"):
        new(small, size="350m").check()


def test_a_decoder_without_a_pad_token_pads_with_its_end(small: Path, tmp_path: Path) -> None:
    new(small).save(new(small).build(num_labels=0, seed=0, head="causal_lm"), tmp_path / "model")
    file = tmp_path / "model" / "tokenizer_config.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key != "pad_token"})
    )
    backbone = LanguageBackbone(path=tmp_path / "model")
    assert backbone.preprocessing().pad_id == backbone.tokenizer().eos_token_id
