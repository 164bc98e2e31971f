"""Small checkpoints on disk in the layouts that are in the wild, full of ties, and how pruning in memory does them."""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from essential_sparsity.checkpoints import Checkpoint
from essential_sparsity.pruning import (
    NM,
    ErdosRenyi,
    Explicit,
    Global,
    Magnitude,
    Masks,
    PerRow,
    Pruner,
    Random,
    Uniform,
    Unstructured,
    prunable_names,
)

OMP = Pruner()
PRUNERS = {
    "omp": (OMP, "0.5"),
    "random": (Pruner(Random(3), Global(), Unstructured()), "0.3"),
    "uniform": (Pruner(Magnitude(), Uniform(), Unstructured()), "0.7"),
    "erdos-renyi": (Pruner(Random(1), ErdosRenyi(kernel=True), Unstructured()), "0.6"),
    "explicit": (Pruner(Magnitude(), Explicit({"*.0.*": 0.5, "*.1*": 0.25}), Unstructured()), None),
    "per row": (Pruner(Magnitude(), PerRow(), Unstructured()), "0.4"),
    "2:4": (Pruner(Magnitude(), Global(), NM(2, 4)), None),
    "random 3:8 over outputs": (Pruner(Random(2), Global(), NM(3, 8, axis="output")), None),
}

LAYOUTS = {
    "bert": ("bert.encoder.layer.{}.", {
        "attention.self.query": (16, 16), "attention.self.key": (16, 16), "attention.self.value": (16, 16),
        "attention.output.dense": (16, 16), "intermediate.dense": (40, 16), "output.dense": (16, 40),
    }, {"bert.embeddings.word_embeddings.weight": (50, 16), "bert.pooler.dense.weight": (16, 16)}),
    "timm": ("blocks.{}.", {
        "attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (40, 16), "mlp.fc2": (16, 40),
    }, {"pos_embed": (1, 17, 16), "head.weight": (10, 16)}),
    "gpt2": ("transformer.h.{}.", {
        "attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 40), "mlp.c_proj": (40, 16),
    }, {"transformer.wte.weight": (50, 16)}),
}  # fmt: skip


def tensors_of(layout: str, dtype: torch.dtype = torch.float32, num_layers: int = 11) -> dict[str, Tensor]:
    """Draw weights of one layout on a coarse grid, so that many tie, zeros of both signs among them."""
    block, kinds, others = LAYOUTS[layout]
    shapes = dict(others)
    for layer in range(num_layers):
        for kind, shape in kinds.items():
            shapes[f"{block.format(layer)}{kind}.weight"] = shape
            shapes[f"{block.format(layer)}{kind}.bias"] = (shape[0],)
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: (value.mul(8).round().div(8) * 0.02).to(dtype) for name, value in drawn.items()}


def write(folder: Path, tensors: dict[str, Tensor], *, num_shards: int = 1) -> Path:
    """Write what `save_pretrained` would: one file, or shards with an index; the shards cut across the layers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bert"}\n')
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    names, step = sorted(tensors), math.ceil(len(tensors) / num_shards)
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        inside = names[number * step : (number + 1) * step]
        save_file({name: tensors[name] for name in inside}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(inside, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def in_memory(folder: Path, pruner, sparsity=None) -> Masks:
    """Load everything and prune it at once: what streaming must equal."""
    stored = Checkpoint.open(folder)
    return pruner({own: stored[name] for own, name in prunable_names(stored).items()}, sparsity=sparsity)


def assert_pruned(dense: Path, out: Path, masks: Masks) -> None:
    """Check every byte: masked weights are +0.0, all others what they were, headers the same."""
    before, after = Checkpoint.open(dense), Checkpoint.open(out)
    names = {name: own for own, name in prunable_names(before).items()}
    for file in before.files:
        assert (out / file.name).stat().st_size == file.stat().st_size
    assert after.names() == before.names()
    for name in before:
        kept, whole = after[name], before[name].clone()
        if name in names:
            whole.masked_fill_(~masks[names[name]], 0.0)
        assert kept.dtype == whole.dtype
        assert torch.equal(kept.reshape(-1).view(torch.uint8), whole.reshape(-1).view(torch.uint8)), name


def tree(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, but for what tells when and how fast."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "prune.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
