"""Which tensors of a model are prunable, and what they are called: the only place that parses parameter names.

A *canonical name* is a parameter's name from its block on: with the prefix `bert.`, `model.bert.` or none, one name.
The *fixed order* is the natural sort of canonical names (layer 2 before layer 10), then row-major inside a tensor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import cast

from torch import Tensor, nn

_DESCRIBE = (
    "describe the model in Python by Architecture.from_patterns(blocks, prunable); commands take known families alone"
)

_ATTENTION = ("query", "key", "value", "attention_output")


@dataclass(frozen=True)
class Architecture:
    """Where a family of models keeps its prunable matrices: plain data.

    `blocks` is a regular expression of a block's name with one group, the layer's number. `kinds` maps the rest of a
    weight's name (glob patterns allowed, without `.weight`) to its kind, `prunable` says which kinds count, `fused`
    which kinds hold several, `input_axis` which axis of a matrix runs over inputs (1 for Linear, 0 for Conv1D), and
    `shared_inputs` which kinds read the same activations.
    """

    blocks: str
    kinds: Mapping[str, str]
    prunable: tuple[str, ...]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    input_axis: int = 1
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    family: str = "custom"

    @classmethod
    def from_patterns(
        cls,
        blocks: str,
        prunable: Sequence[str],
        *,
        fused: Mapping[str, tuple[str, ...]] | None = None,
        input_axis: int = 1,
        shared_inputs: tuple[tuple[str, ...], ...] = (),
    ) -> "Architecture":
        r"""Describe any model by patterns: `from_patterns(r"layers\.(\d+)\.", ["attention.*_proj", "mlp.fc?"])`.

        Each pattern of `prunable` is matched to what follows the block's name, without `.weight`, and is its own kind.
        """
        try:
            groups = re.compile(blocks).groups
        except re.error as error:
            raise ValueError(f"blocks={blocks!r} is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"blocks={blocks!r} has {groups} groups: give exactly one, the layer's number, as (\\d+)")
        if not prunable:
            raise ValueError("prunable=[] chooses no weight: give at least one pattern such as 'mlp.*'")
        return cls(blocks, {p: p for p in prunable}, tuple(prunable), dict(fused or {}), input_axis, shared_inputs)

    def kind(self, name: str) -> str | None:
        """Give the kind of a weight (any spelling of its name), or None where the name is no matrix of a block."""
        found = _find_block(self.blocks, name)
        if found is None:
            return None
        rest = _without_suffix(name[found.end() :])
        if rest in self.kinds:
            return self.kinds[rest]
        return next((kind for pattern, kind in self.kinds.items() if fnmatchcase(rest, pattern)), None)

    def is_prunable(self, name: str) -> bool:
        """Say whether a parameter of this name counts as prunable weight."""
        return not name.endswith(".bias") and self.kind(name) in self.prunable


def _family(
    family: str,
    blocks: str,
    attention: Sequence[str],
    mlp: Mapping[str, str],
    *,
    fused: Mapping[str, tuple[str, ...]] | None = None,
    input_axis: int = 1,
) -> Architecture:
    """Spell a built-in family: `attention` names query, key, value and output (or the fused matrix and the output)."""
    attention_kinds = _ATTENTION if len(attention) == 4 else ("qkv", "attention_output")
    kinds = dict(zip(attention, attention_kinds)) | dict(mlp)
    shared = (("query", "key", "value"),) if len(attention) == 4 else ()
    if "mlp_gate" in kinds.values():
        shared = (*shared, ("mlp_gate", "mlp_up"))
    return Architecture(blocks, kinds, tuple(kinds.values()), dict(fused or {}), input_axis, shared, family)


_QKV = {"qkv": ("query", "key", "value")}
_BERT_MLP = {"intermediate.dense": "mlp_in", "output.dense": "mlp_out"}
_FC_MLP = {"mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out"}
_BERT_BLOCKS = r"encoder\.layer\.(\d+)\."

FAMILIES: tuple[Architecture, ...] = (
    _family(
        "bert",
        _BERT_BLOCKS,
        ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        _BERT_MLP,
    ),
    _family(
        "deberta",
        _BERT_BLOCKS,
        ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj", "attention.output.dense"),
        _BERT_MLP,
    ),
    _family(
        "mpnet",
        _BERT_BLOCKS,
        ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        _BERT_MLP,
    ),
    _family(
        "distilbert",
        r"transformer\.layer\.(\d+)\.",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        {"ffn.lin1": "mlp_in", "ffn.lin2": "mlp_out"},
    ),
    _family(
        "opt",
        r"decoder\.layers\.(\d+)\.",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
        {"fc1": "mlp_in", "fc2": "mlp_out"},
    ),
    _family(
        "llama",
        r"layers\.(\d+)\.",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        {"mlp.gate_proj": "mlp_gate", "mlp.up_proj": "mlp_up", "mlp.down_proj": "mlp_down"},
    ),
    _family(
        "gpt2",
        r"h\.(\d+)\.",
        ("attn.c_attn", "attn.c_proj"),
        {"mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"},
        fused=_QKV,
        input_axis=0,
    ),
    _family("timm_vit", r"blocks\.(\d+)\.", ("attn.qkv", "attn.proj"), _FC_MLP, fused=_QKV),
    _family(
        "vit",
        r"(?:encoder\.layer|layers)\.(\d+)\.",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        _FC_MLP,
    ),
    _family(
        "vit_before_transformers_5",
        _BERT_BLOCKS,
        (
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
        ),
        _BERT_MLP,
    ),
)
"""The families that `architecture_of` knows, by the names of transformers 5 and timm 1."""

_KINDS = {rest: kind for family in FAMILIES for rest, kind in family.kinds.items()}


def architecture_of(names: Iterable[str]) -> Architecture:
    """Recognise the family of a model by its parameter names.

    Raises ValueError for a model that no family describes, and for a second stack of blocks (an encoder-decoder).
    """
    names = list(names)
    for family in FAMILIES:
        kinds = {family.kind(name) for name in names}
        if kinds.issuperset(family.prunable):
            _refuse_second_stack(names, family)
            return family
    some = ", ".join(names[:: max(1, len(names) // 4)][:4]) or "none"
    known = ", ".join(family.family for family in FAMILIES)
    raise ValueError(f"no known architecture ({known}) has these parameter names ({some}): {_DESCRIBE}")


def _refuse_second_stack(names: list[str], architecture: Architecture) -> None:
    """Refuse a model in which the same matrices occur outside the blocks: they would silently stay dense."""
    for name in names:
        rest = _without_suffix(re.split(r"(?:^|\.)\d+\.", name)[-1])
        if rest in architecture.kinds and not name.endswith(".bias") and architecture.kind(name) is None:
            raise ValueError(
                f"weight {name!r} looks prunable but lies outside the {architecture.family} blocks: {_DESCRIBE}"
            )


def canonical_name(name: str, architecture: Architecture) -> str:
    """Drop what stands before the block: `model.bert.encoder.layer.0.…` becomes `encoder.layer.0.…`."""
    found = _find_block(architecture.blocks, name)
    if found is None:
        raise ValueError(f"weight {name!r} lies outside the blocks {architecture.blocks!r} and has no canonical name")
    return name[found.start() :]


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key that counts numbers as numbers: layer 2 before layer 10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def prunable_weights(model: nn.Module, architecture: Architecture | None = None) -> dict[str, nn.Parameter]:
    """Map canonical names to a model's prunable parameters, in the fixed order, tied weights once.

    Works on a model and on a module that wraps it; copies that a module declares by `shadows()` are left out.
    """
    parameters = _parameters(model)
    names = prunable_names(parameters, architecture)
    weights: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for canonical, name in names.items():
        weight = parameters[name]
        if weight.ndim < 2:
            raise ValueError(
                f"weight {name!r} of shape {tuple(weight.shape)} is no matrix: narrow the prunable patterns"
            )
        if id(weight) not in seen:
            seen.add(id(weight))
            weights[canonical] = weight
    return weights


def excluded_weights(model: nn.Module, architecture: Architecture | None = None) -> dict[str, nn.Parameter]:
    """Map names to all parameters that are not prunable (embeddings, biases, norms, heads), each once."""
    prunable = {id(weight) for weight in prunable_weights(model, architecture).values()}
    rest: dict[str, nn.Parameter] = {}
    seen = prunable.copy()
    for name, parameter in _parameters(model).items():
        if id(parameter) not in seen:
            seen.add(id(parameter))
            rest[name] = parameter
    return rest


def prunable_names(names: Iterable[str], architecture: Architecture | None = None) -> dict[str, str]:
    """Map canonical names to the names of a model or checkpoint, in the fixed order.

    Raises ValueError where nothing is prunable or two weights share a canonical name.
    """
    names = list(names)
    architecture = architecture or architecture_of(names)
    found: dict[str, str] = {}
    for name in filter(architecture.is_prunable, names):
        canonical = canonical_name(name, architecture)
        if canonical in found:
            raise ValueError(
                f"weights {found[canonical]!r} and {name!r} share the canonical name {canonical!r}: "
                "choose one of them by the blocks pattern of Architecture.from_patterns"
            )
        found[canonical] = name
    if not found:
        some = ", ".join(names[:3]) or "none"
        raise ValueError(
            f"no weight is prunable under blocks {architecture.blocks!r} (names: {some}): mend the patterns"
        )
    return {canonical: found[canonical] for canonical in sorted(found, key=natural_order)}


def block_names(names: Iterable[str], architecture: Architecture) -> list[str]:
    """Name the modules that are blocks, in the order of these parameter names: `bert.encoder.layer.0`, …."""
    found = ((name, _find_block(architecture.blocks, name)) for name in names)
    return list(dict.fromkeys(name[: block.end()].rstrip(".") for name, block in found if block is not None))


def layer_of(canonical: str) -> int:
    """Give the layer's number in a canonical name: 3 for `encoder.layer.3.output.dense.weight`."""
    return int(_split(canonical)[0])


def kind_of(canonical: str) -> str:
    """Give the kind of matrix in a canonical name: `query`, `mlp_in`, …; the rest of the name for unknown families."""
    rest = _without_suffix(_split(canonical)[1])
    return _KINDS.get(rest, rest)


def fused_parts(canonical: str, weight: Tensor, architecture: Architecture) -> dict[str, Tensor]:
    """Split a fused matrix, [out, in] or [in, out], into views per kind; any other matrix is its own only part."""
    kind = architecture.kind(canonical) or kind_of(canonical)
    parts = architecture.fused.get(kind)
    if parts is None:
        return {kind: weight}
    return dict(zip(parts, weight.chunk(len(parts), dim=1 - architecture.input_axis), strict=True))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by name, tied ones under each of their names, without a module's declared shadows."""
    declare = getattr(model, "shadows", None)
    shadows = cast(Iterable[nn.Module], declare()) if callable(declare) else ()
    copies = {id(parameter) for parameter in chain.from_iterable(shadow.parameters() for shadow in shadows)}
    return {n: p for n, p in model.named_parameters(remove_duplicate=False) if id(p) not in copies}


def _find_block(blocks: str, name: str) -> re.Match[str] | None:
    """Find the block at the start of a name or after a dot."""
    return re.search(rf"(?:(?<=^)|(?<=\.))(?:{blocks})", name)


def _split(canonical: str) -> tuple[str, str]:
    """Split a canonical name into the layer's number and what follows it."""
    found = re.search(r"(?:^|\.)(\d+)\.", canonical)
    if found is None:
        raise ValueError(f"{canonical!r} has no layer number: give a canonical name such as 'blocks.0.mlp.fc1.weight'")
    return found.group(1), canonical[found.end() :]


def _without_suffix(rest: str) -> str:
    return rest.removesuffix(".weight")
