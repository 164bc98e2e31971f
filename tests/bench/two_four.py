"""2:4 matrices on a CUDA card against dense ones, per shape of BERT-base, ViT-L and OPT-6.7B: where it pays."""

from collections.abc import Iterator

import torch
from torch import nn

from essential_sparsity.pruning import NM, Pruner
from essential_sparsity.pruning.semi_structured import CAPABILITY, compressed, time_on_card
from tests.bench.figure import Figure

SHAPES = {
    "BERT-base": ((768, 768), (3072, 768), (768, 3072)),
    "ViT-L": ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096)),
    "OPT-6.7B": ((4096, 4096), (16384, 4096), (4096, 16384)),
}
"""(outputs, inputs) of the prunable matrices."""

TOKENS = (16, 512, 4096, 32768)


def run(quick: bool = False) -> Iterator[Figure]:
    """Time every shape where a card is, say so where none is; first check that both ways compute the same."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < CAPABILITY:
        yield Figure("2:4 products on the card", skipped="no CUDA card of compute capability 8.0: skipped")
        return
    for model, shapes in SHAPES.items():
        for outputs, inputs in shapes[:1] if quick else shapes:
            weight = torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
            named = {"layers.0.weight": weight}
            Pruner(pattern=NM(2, 4))(named).apply_(named)
            what = f"{model}, bf16 {outputs} × {inputs}"
            yield Figure(f"{what}: largest difference", _difference(weight), unit="", goal="≤ 0.02", check=True)
            for num_tokens in TOKENS[:1] if quick else TOKENS:
                dense, sparse = time_on_card(weight, num_tokens)
                yield Figure(f"{what}, {num_tokens:,} tokens: 2:4; dense", sparse, dense)


def _difference(weight: torch.Tensor) -> float:
    """Give the largest difference of the two products, as a share of the largest value."""
    tokens = torch.randn(256, weight.shape[1], device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        dense = nn.functional.linear(tokens, weight).float()
        sparse = nn.functional.linear(tokens, compressed(weight)).float()
    return float((dense - sparse).abs().max() / dense.abs().max())
