"""Which tensors are prunable, what they are called, and in which order they come."""

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from essential_sparsity.pruning import (
    Architecture,
    architecture_of,
    canonical_name,
    excluded_weights,
    fused_parts,
    kind_of,
    layer_of,
    prunable_names,
    prunable_weights,
)
from essential_sparsity.pruning.architecture import natural_order


def _transformers(kind: str) -> nn.Module:
    """Build a two-layer model of a family on the meta device: names and shapes, no memory."""
    import transformers

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    sizes: dict[str, dict[str, Any]] = {
        "BertForSequenceClassification": small | {"intermediate_size": 32},
        "RobertaForSequenceClassification": small | {"intermediate_size": 32},
        "ElectraForSequenceClassification": small | {"intermediate_size": 32, "embedding_size": 16},
        "DebertaV2ForSequenceClassification": small | {"intermediate_size": 32},
        "MPNetForSequenceClassification": small | {"intermediate_size": 32},
        "ViTForImageClassification": small | {"intermediate_size": 32},
        "OPTForCausalLM": small | {"ffn_dim": 32, "word_embed_proj_dim": 16},
        "LlamaForCausalLM": small | {"intermediate_size": 32, "num_key_value_heads": 2},
        "DistilBertForSequenceClassification": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
        "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50},
        "BartForConditionalGeneration": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50},
    }
    model_class = getattr(transformers, kind)
    with torch.device("meta"):
        return model_class(model_class.config_class(**sizes[kind]))


FAMILIES = {
    "BertForSequenceClassification": ("bert", "encoder.layer.0.attention.output.dense.weight", 6),
    "RobertaForSequenceClassification": ("bert", "encoder.layer.0.attention.output.dense.weight", 6),
    "ElectraForSequenceClassification": ("bert", "encoder.layer.0.attention.output.dense.weight", 6),
    "DebertaV2ForSequenceClassification": ("deberta", "encoder.layer.0.attention.output.dense.weight", 6),
    "MPNetForSequenceClassification": ("mpnet", "encoder.layer.0.attention.attn.k.weight", 6),
    "DistilBertForSequenceClassification": ("distilbert", "transformer.layer.0.attention.k_lin.weight", 6),
    "OPTForCausalLM": ("opt", "decoder.layers.0.fc1.weight", 6),
    "LlamaForCausalLM": ("llama", "layers.0.mlp.down_proj.weight", 7),
    "GPT2LMHeadModel": ("gpt2", "h.0.attn.c_attn.weight", 4),
    "ViTForImageClassification": ("vit", "layers.0.attention.k_proj.weight", 6),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_families_are_recognised_and_all_block_matrices_are_prunable(kind: str) -> None:
    family, first, per_layer = FAMILIES[kind]
    model = _transformers(kind)
    architecture = architecture_of(name for name, _ in model.named_parameters())
    weights = prunable_weights(model)
    assert architecture.family == family
    assert next(iter(weights)) == first
    assert len(weights) == 2 * per_layer
    assert [layer_of(name) for name in weights] == [0] * per_layer + [1] * per_layer
    matrices_in_blocks = {
        id(p) for name, p in model.named_parameters() if architecture.kind(name) is not None and p.ndim == 2
    }
    assert {id(weight) for weight in weights.values()} == matrices_in_blocks


@pytest.mark.parametrize("kind", FAMILIES)
def test_prunable_and_excluded_share_out_all_parameters(kind: str) -> None:
    model = _transformers(kind)
    prunable = {id(p) for p in prunable_weights(model).values()}
    excluded = {id(p) for p in excluded_weights(model).values()}
    assert not prunable & excluded
    assert prunable | excluded == {id(p) for p in model.parameters()}
    names = " ".join(excluded_weights(model))
    assert "embed" in names or "wte" in names or "patch" in names


def test_timm_vit_has_one_key_for_query_key_and_value() -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=11, num_heads=3, num_classes=5)
    weights = prunable_weights(model)
    assert list(weights)[:4] == [
        "blocks.0.attn.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
    ]
    assert layer_of(list(weights)[-1]) == 10
    assert "head.weight" in excluded_weights(model)
    assert "patch_embed.proj.weight" in excluded_weights(model)


def test_one_matrix_has_one_canonical_name_under_every_prefix() -> None:
    bert = architecture_of(f"bert.{rest}.weight" for rest in _bert_names())
    name = "encoder.layer.3.attention.self.query.weight"
    for prefix in ("", "bert.", "model.bert.", "_orig_mod.", "module.model."):
        assert canonical_name(prefix + name, bert) == name
    with pytest.raises(ValueError, match="outside the blocks"):
        canonical_name("bert.pooler.dense.weight", bert)


def _bert_names() -> list[str]:
    parts = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    return [f"encoder.layer.{i}.{part}" for i in (10, 2) for part in [*parts, "intermediate.dense", "output.dense"]]


def test_fixed_order_counts_layers_as_numbers() -> None:
    found = prunable_names(f"bert.{name}.weight" for name in _bert_names())
    assert [layer_of(name) for name in found] == [2] * 6 + [10] * 6
    assert sorted(["a.10.b", "a.2.b", "a.b", "a.2.a"], key=natural_order) == ["a.2.a", "a.2.b", "a.10.b", "a.b"]


def test_names_map_to_those_of_the_checkpoint() -> None:
    found = prunable_names(f"bert.{name}.{part}" for name in _bert_names() for part in ("weight", "bias"))
    assert len(found) == 12
    assert all(name == f"bert.{canonical}" for canonical, name in found.items())


def test_a_lightning_module_and_its_model_have_the_same_weights() -> None:
    model = _transformers("BertForSequenceClassification")

    class Task(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

    ours, theirs = prunable_weights(Task()), prunable_weights(model)
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in ours)


def test_compiling_renames_nothing() -> None:
    model = _transformers("OPTForCausalLM")
    before = list(prunable_weights(model))
    model.compile()
    assert list(prunable_weights(model)) == before


def test_kinds_have_one_vocabulary_over_families() -> None:
    assert kind_of("encoder.layer.3.attention.self.query.weight") == "query"
    assert kind_of("decoder.layers.3.self_attn.q_proj.weight") == "query"
    assert kind_of("blocks.3.attn.qkv.weight") == "qkv"
    assert kind_of("h.3.attn.c_attn.weight") == "qkv"
    assert kind_of("encoder.layer.3.output.dense.weight") == kind_of("blocks.3.mlp.fc2.weight") == "mlp_out"
    assert kind_of("stages.3.strange.conv.weight") == "strange.conv"
    with pytest.raises(ValueError, match="no layer number"):
        layer_of("pooler.dense.weight")


def test_fused_matrix_splits_into_views_along_its_output_axis() -> None:
    weight = torch.arange(24.0).view(6, 4)
    timm_names = ["blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight"]
    timm = architecture_of([*timm_names, "blocks.0.mlp.fc2.weight"])
    parts = fused_parts(timm_names[0], weight, timm)
    assert list(parts) == ["query", "key", "value"]
    assert torch.equal(parts["key"], weight[2:4])
    assert parts["key"].data_ptr() == weight[2:4].data_ptr()
    assert list(fused_parts(timm_names[1], weight, timm)) == ["attention_output"]

    gpt2_names = ["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"]
    conv1d = fused_parts(gpt2_names[0], weight.T, architecture_of(gpt2_names))  # [in, out]
    assert torch.equal(conv1d["key"], weight.T[:, 2:4])


def test_tied_weights_count_once_under_their_first_name() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(3, 3) for _ in range(3)])
    model.layers[2] = model.layers[0]
    architecture = Architecture.from_patterns(r"layers\.(?=\d+)(\d+)\.", ["*eight"])
    weights = prunable_weights(model, architecture)
    assert list(weights) == ["layers.0.weight", "layers.1.weight"]


def test_any_model_is_described_by_patterns() -> None:
    model = nn.Module()
    model.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    architecture = Architecture.from_patterns(r"layers\.(\d+)\.", ["self_attn.in_proj_weight", "linear?"])
    assert list(prunable_weights(model, architecture)) == [
        f"layers.{layer}.{part}"
        for layer in (0, 1)
        for part in ("linear1.weight", "linear2.weight", "self_attn.in_proj_weight")
    ]
    assert "encoder.layers.0.self_attn.out_proj.weight" in excluded_weights(model, architecture)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: architecture_of(["conv1.weight", "fc.bias"]),
            r"no known architecture .*conv1.weight, fc.bias\): .* in Python .*; commands take known families alone",
        ),
        (lambda: Architecture.from_patterns(r"layers\.\d+\.", ["fc"]), "has 0 groups: give exactly one"),
        (lambda: Architecture.from_patterns(r"layers(", ["fc"]), "is no regular expression"),
        (lambda: Architecture.from_patterns(r"layers\.(\d+)\.", []), "chooses no weight"),
        (
            lambda: prunable_names(["layers.0.fc.weight"], Architecture.from_patterns(r"layers\.(\d+)\.", ["mlp.*"])),
            "no weight is prunable",
        ),
        (
            lambda: prunable_weights(
                nn.ModuleDict({"layers": nn.ModuleList([nn.LayerNorm(3)])}),
                Architecture.from_patterns(r"layers\.(\d+)\.", ["*"]),
            ),
            "of shape .3,. is no matrix",
        ),
        (lambda: prunable_names([f"{p}.{n}.weight" for p in "ab" for n in _bert_names()]), "share the canonical name"),
        (lambda: prunable_weights(_transformers("BartForConditionalGeneration")), "lies outside the opt blocks"),
    ],
)
def test_models_that_cannot_be_read_are_refused_with_a_remedy(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_shadows_are_not_counted() -> None:
    class WithTeacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
            self.teacher = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})

        def shadows(self) -> list[nn.Module]:
            return [self.teacher]

    model = WithTeacher()
    architecture = Architecture.from_patterns(r"layers\.(\d+)\.", ["weight"])
    weights = prunable_weights(model, architecture)
    assert list(weights) == ["layers.0.weight"]
    assert weights["layers.0.weight"] is model.student.get_parameter("layers.0.weight")
