"""2:4 on a CUDA card: each shape timed sparse against dense, and only those converted that win.

A mask alone speeds nothing up: zeros take as much room and time as any weight. Cards from compute capability 8.0 on
multiply matrices of which each four neighbours of a row keep two, at up to twice the rate; whether that pays depends on
shape, number of tokens and card, so it is measured here, on the card and with the model at hand.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CAPABILITY = (8, 0)
"""First cards with sparse tensor cores (Ampere)."""

DTYPES = (torch.float16, torch.bfloat16)

UNITS = (32, 64)
"""Outputs and inputs that torch's kernels take at a time."""

MARGIN = 1.02
"""How many times faster sparse must be to be used: less is the clock's noise."""


class Shape(NamedTuple):
    """A matrix's outputs and inputs, and its dtype: what decides which way is faster."""

    outputs: int
    inputs: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Timing:
    """One shape of a model's 2:4 matrices: how many there are, seconds per product, and what was done."""

    outputs: int
    inputs: int
    dtype: str
    num_layers: int
    num_tokens: int
    dense: float
    sparse: float
    converted: bool

    @property
    def ratio(self) -> float:
        """How many times faster sparse is."""
        return self.dense / self.sparse

    def as_dict(self) -> dict[str, Any]:
        """Give a row of a table."""
        return {**asdict(self), "ratio": self.ratio}


Clock = Callable[[Tensor, int], tuple[float, float]]
"""Times products of one weight with so many tokens: seconds (dense, sparse)."""


@torch.no_grad()
def speed_up(
    model: nn.Module,
    *,
    num_tokens: int = 4096,
    clock: Clock | None = None,
    convert: Callable[[Tensor], Tensor] | None = None,
) -> list[Timing]:
    """Store the model's 2:4 matrices sparse where that is faster for products with `num_tokens` rows; give the table.

    For inference: a converted weight takes no gradient. `clock` and `convert` stand in for the card's. Raises
    ValueError, naming what is missing, where there is no such card or no matrix in half precision with that pattern.
    """
    if clock is None:
        refuse_without_card(model)
    layers: dict[Shape, list[nn.Linear]] = {}
    for layer in linear_layers(model):
        outputs, inputs = layer.weight.shape
        layers.setdefault(Shape(outputs, inputs, layer.weight.dtype), []).append(layer)
    rows = []
    for shape, found in layers.items():
        dense, sparse = (clock or time_on_card)(found[0].weight, num_tokens)
        wins = dense > MARGIN * sparse
        if wins:
            for layer in found:
                stored = (convert or compressed)(layer.weight.detach())
                layer.weight = nn.Parameter(stored, requires_grad=False)
        dtype = str(shape.dtype).removeprefix("torch.")
        rows.append(Timing(shape.outputs, shape.inputs, dtype, len(found), num_tokens, dense, sparse, wins))
    return rows


def compressed(weight: Tensor) -> Tensor:
    """Store a 2:4 matrix [out, in] on the card as its kept weights and their places."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype", category=UserWarning)  # torch says so once
        return torch.sparse.to_sparse_semi_structured(weight)


def is_two_four(weight: Tensor) -> bool:
    """Say whether each four neighbours of a row, [out, in], hold at least two zeros."""
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return bool(((weight != 0).view(len(weight), -1, 4).sum(dim=2) <= 2).all())


def linear_layers(model: nn.Module) -> Sequence[nn.Linear]:
    """List the linear layers that 2:4 products exist for; raises ValueError where there are none."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    halves = [layer for layer in linear if layer.weight.dtype in DTYPES]
    structured = [layer for layer in halves if is_two_four(layer.weight)]
    found = [layer for layer in structured if _fits(layer.weight)]
    if not halves:
        raise ValueError(f"none of {len(linear)} linear layers is in half precision: load the model in bfloat16")
    if not structured:
        raise ValueError(
            f"none of {len(halves)} linear layers keeps two of each four weights: "
            "prune with pruner=nm pruner.pattern=2:4"
        )
    if not found:
        outputs, inputs = structured[0].weight.shape
        raise ValueError(
            f"none of {len(structured)} 2:4 layers has a shape that 2:4 products exist for (the first: {outputs} × "
            f"{inputs}): outputs come in units of {UNITS[0]}, inputs in units of {UNITS[1]}; the model runs dense"
        )
    return found


def refuse_without_card(model: nn.Module) -> None:
    """Raise ValueError where the model is not on a card that multiplies 2:4 matrices."""
    if not torch.cuda.is_available():
        raise ValueError("2:4 products need a CUDA card and there is none: the pruned model runs dense, with zeros")
    parameter = next(model.parameters(), None)
    if parameter is None or not parameter.is_cuda:
        raise ValueError("the model is not on the card: call model.cuda() first")
    capability = torch.cuda.get_device_capability(parameter.device)
    if capability < CAPABILITY:
        shown = ".".join(map(str, capability))
        raise ValueError(f"this card has compute capability {shown}: 2:4 products need 8.0 (Ampere) or later")


def _fits(weight: Tensor) -> bool:
    """Say whether torch's kernels take the shape."""
    return weight.ndim == 2 and weight.shape[0] % UNITS[0] == 0 and weight.shape[1] % UNITS[1] == 0


def time_on_card(weight: Tensor, num_tokens: int, rounds: int = 20) -> tuple[float, float]:
    """Time products of a weight with random tokens on its card, in turn dense and sparse: medians, in seconds."""
    tokens = torch.randn(num_tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    dense, sparse = weight.detach(), compressed(weight.detach())
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(rounds + 3):
        for which, matrix in enumerate((dense, sparse)):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            nn.functional.linear(tokens, matrix)
            end.record()
            end.synchronize()
            if number >= 3:  # the first choose kernels
                times[which].append(begin.elapsed_time(end) / 1000)
    return median(times[0]), median(times[1])
