"""Calibrated pruning in its plain spelling: row by row, matrix by matrix, each time through the whole model.

Models of all families, tiny and random, and what goes into their matrices.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from essential_sparsity.pruning import Architecture, architecture_of, layer_of, prunable_weights

FAMILIES = ("bert", "opt", "llama", "gpt2", "timm_vit")


def tiny_model(family: str, *, num_layers: int = 3) -> Any:
    """Build a random model of two to three blocks, in training mode with dropout where the family has it."""
    torch.manual_seed(0)
    if family == "timm_vit":
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(
            img_size=16, patch_size=4, embed_dim=24, depth=num_layers, num_heads=3, num_classes=5, proj_drop_rate=0.1
        )
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2Model,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 3,
    }
    special: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    models: dict[str, Callable[[], nn.Module]] = {
        "bert": lambda: BertModel(BertConfig(intermediate_size=48, max_position_embeddings=32, **sizes, **special)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(ffn_dim=48, word_embed_proj_dim=24, max_position_embeddings=32, **sizes, **special)
        ),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=48, num_key_value_heads=1, **sizes, **special)),
        "gpt2": lambda: GPT2Model(
            GPT2Config(vocab_size=60, n_embd=24, n_layer=num_layers, n_head=3, n_positions=32, **special)
        ),
    }
    model = models[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # larger than at initialisation: blocks differ from identity
            if parameter.ndim == 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
                parameter.normal_(0, 0.2)
    return model.train()


def tiny_batches(family: str, num_batches: int = 3, rows: int = 4) -> list[dict[str, Tensor]]:
    """Draw batches of unequal rows, padded on the right (images where the family reads them)."""
    generator = torch.Generator().manual_seed(1)
    if family == "timm_vit":
        return [{"x": torch.randn(rows, 3, 16, 16, generator=generator)} for _ in range(num_batches)]
    batches = []
    for number in range(num_batches):
        longest = 11 - 2 * number
        lengths = torch.randint(3, longest + 1, (rows,), generator=generator)
        lengths[0] = longest
        inside = torch.arange(longest) < lengths[:, None]
        ids = torch.randint(3, 60, (rows, longest), generator=generator).masked_fill(~inside, 0)
        batches.append({"input_ids": ids, "attention_mask": inside.long()})
    return batches


def single_rows(batches: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Cut batches into single rows without padding."""
    singles = []
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            single = {name: value[row : row + 1] for name, value in batch.items()}
            if "attention_mask" in single:
                length = int(single["attention_mask"].sum())
                single = {name: value[:, :length] for name, value in single.items()}
            singles.append(single)
    return singles


@torch.no_grad()
def inputs_of(model: nn.Module, weight: nn.Parameter, singles: Sequence[dict[str, Tensor]]) -> Tensor:
    """Collect what goes into one matrix over all rows, each through the whole model: [T, D]."""
    seen: list[Tensor] = []
    layer = next(module for module in model.modules() if getattr(module, "weight", None) is weight)
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    model.eval()
    for single in singles:
        model(**single)
    hook.remove()
    return torch.cat(seen)


Treat = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(name, weight [outputs, inputs], inputs [T, D]) → (new weight, keep mask), both [outputs, inputs]."""


def pruned_in_turn(
    model: nn.Module, batches: Sequence[dict[str, Tensor]], treat: Treat, *, architecture: Architecture | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prune a copy of the model block by block: (weights, keep masks) by canonical name, as they are stored."""
    model = copy.deepcopy(model)
    architecture = architecture or architecture_of([name for name, _ in model.named_parameters()])
    weights, singles = prunable_weights(model, architecture), single_rows(batches)
    keeps: dict[str, Tensor] = {}
    for layer in sorted({layer_of(name) for name in weights}):
        own = {name: weight for name, weight in weights.items() if layer_of(name) == layer}
        seen = {name: inputs_of(model, weight, singles) for name, weight in own.items()}
        for name, weight in own.items():
            turn = (lambda matrix: matrix.T) if architecture.input_axis == 0 else (lambda matrix: matrix)
            values, keep = treat(name, turn(weight.detach().clone()), seen[name])
            weight.data, keeps[name] = turn(values).to(weight.dtype), turn(keep)
    return {name: weight.detach() for name, weight in weights.items()}, keeps


def wanda_keep(weight: Tensor, inputs: Tensor, num_pruned_per_row: int) -> Tensor:
    """Prune the smallest |w| ‖x‖ of each output, one after another; of equal ones the later goes first."""
    scores = weight.abs().double() * inputs.double().norm(dim=0)
    keep = torch.ones_like(weight, dtype=torch.bool)
    for row in range(len(scores)):
        order = sorted(range(scores.shape[1]), key=lambda column: (float(scores[row, column]), -column))
        keep[row, order[:num_pruned_per_row]] = False
    return keep


def nm_keep(scores: Tensor, kept: int, of: int) -> Tensor:
    """Keep the largest scores of each group of columns, group by group."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(len(scores)):
        for start in range(0, scores.shape[1], of):
            group = range(start, min(start + of, scores.shape[1]))
            for column in sorted(group, key=lambda c: (-float(scores[row, c]), c))[:kept]:
                keep[row, column] = True
    return keep


def sparsegpt_matrix(
    weight: Tensor,
    inputs: Tensor,
    *,
    sparsity: float = 0.0,
    group: tuple[int, int] | None = None,
    dampening: float = 0.01,
    block_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """The published algorithm in float64, column by column, on one matrix [outputs, inputs]: (weights, keep mask).

    Unlike the published code it prunes floor(s n + 1/2) weights of a block of columns, not one more.
    """
    weight, inputs = weight.double().clone(), inputs.double()
    hessian = inputs.T @ inputs
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = hessian.diagonal()[~dead].mean()
    hessian += dampening * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    inverse = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    keep = torch.ones_like(weight, dtype=torch.bool)
    for start in range(0, weight.shape[1], block_size):
        block = slice(start, min(start + block_size, weight.shape[1]))
        scores = (weight[:, block] / inverse.diagonal()[block]) ** 2
        scores[:, dead[block]] = 0
        if group is None:
            order = scores.flatten().argsort(stable=True)
            flat = keep[:, block].flatten()
            flat[order[: int(sparsity * scores.numel() + 0.5)]] = False
            keep[:, block] = flat.view(scores.shape)
        for column in range(block.start, block.stop):
            if group is not None and column % group[1] == 0:
                here = slice(column, column + group[1])
                scores = (weight[:, here] / inverse.diagonal()[here]) ** 2
                keep[:, here] = nm_keep(scores.masked_fill(dead[here], 0), *group)
            error = weight[:, column].masked_fill(keep[:, column], 0) / inverse[column, column]
            weight[:, column:] -= error[:, None] * inverse[column, column:]
        weight[:, block] *= keep[:, block]
    return weight, keep


def reconstruction_error(weight: Tensor, corrected: Tensor, inputs: Tensor) -> float:
    """Squared error of a matrix's outputs on its calibration inputs."""
    return float((inputs.double() @ (weight.double() - corrected.double()).T).square().sum())
