"""What goes into the prunable matrices of a model: sums over the tokens of calibration rows, gathered by hooks.

T tokens (padding left out), D inputs of a matrix.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from essential_sparsity.pruning.architecture import Architecture, architecture_of, prunable_weights

Batch = Mapping[str, Tensor]
Forward = Callable[[Any], Any]
"""Runs the model on one batch; what it gives is not looked at."""

# --- sums over tokens -------------------------------------------------------------------------------------------------


class Statistic(Protocol):
    """A sum over tokens, added to batch by batch."""

    def add(self, inputs: Tensor) -> None:
        """Add the tokens of one batch: [T, D]."""
        ...

    def value(self) -> Tensor:
        """Give the statistic of all tokens."""
        ...


class InputNorms:
    """The Euclidean norm of each input over all tokens: fp32 [D], summed in fp64."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        self._squares = torch.zeros(num_inputs, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        """Add squares, taken in fp32 (summed by a matrix product: twice as fast as `sum`)."""
        squares = inputs.float().square()
        self._squares += torch.mv(squares.T, squares.new_ones(len(squares)))

    def value(self) -> Tensor:
        """Give the norms."""
        return self._squares.sqrt().float()


_TILE = 128
"""Least width of the tiles in which one half of a symmetric product is computed."""


class Hessians:
    """The Hessian of a matrix's squared output error, up to its scale: Σ x xᵀ over all tokens, fp32 [D, D]."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        self._sum = torch.zeros(num_inputs, num_inputs, device=device)
        self._width = max(_TILE, -(-num_inputs // 8))

    def add(self, inputs: Tensor) -> None:
        """Add to the lower triangle, tile by tile: little more than half the work of the whole product."""
        exact = inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16)
        inputs = inputs if exact else inputs.float()
        for start in range(0, len(self._sum), self._width):
            stop = min(start + self._width, len(self._sum))
            tile, left, right = self._sum[start:stop, :stop], inputs[:, start:stop].T, inputs[:, :stop]
            if exact:  # products of two halves are exact in fp32, and tensor cores add them in fp32
                tile += torch.mm(left, right, out_dtype=torch.float32)
            else:
                tile.addmm_(left, right)

    def value(self) -> Tensor:
        """Give the sum, both triangles filled; to be called once (the memory is the sum's own)."""
        for start in range(0, len(self._sum), self._width):
            stop = min(start + self._width, len(self._sum))
            self._sum[:start, start:stop] = self._sum[start:stop, :start].T
        return self._sum


Make = Callable[[int, torch.device], Statistic]


# --- blocks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One block of a model: its prunable matrices by canonical name, and which of them read the same inputs."""

    name: str
    module: nn.Module
    layers: Mapping[str, nn.Module]
    shared: Sequence[tuple[str, ...]]

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The prunable weights, in the fixed order."""
        return {name: _weight(layer) for name, layer in self.layers.items()}


def blocks_of(model: nn.Module, architecture: Architecture | None = None) -> list[Block]:
    """List the blocks in the order in which they run.

    Raises ValueError naming a weight that is no layer's `weight`, or that several layers share.
    """
    architecture = architecture or architecture_of([name for name, _ in model.named_parameters()])
    holders: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            holders.setdefault(id(weight), []).append((name, module))
    found: dict[str, dict[str, nn.Module]] = {}
    for canonical, weight in prunable_weights(model, architecture).items():
        held = holders.get(id(weight), [])
        if len(held) != 1:
            problem = "is no layer's own weight" if not held else f"is shared by {len(held)} layers"
            raise ValueError(f"weight {canonical!r} {problem}: its inputs cannot be told apart, use a magnitude pruner")
        name, layer = held[0]
        block = re.match(architecture.blocks, canonical)
        assert block is not None
        own = canonical.removesuffix(".weight")
        found.setdefault(name.removesuffix(own) + block.group().rstrip("."), {})[canonical] = layer
    return [
        Block(name, model.get_submodule(name), layers, _shared(list(layers), architecture))
        for name, layers in found.items()
    ]


def _shared(names: Sequence[str], architecture: Architecture) -> list[tuple[str, ...]]:
    """Group the weights of one block by the inputs that they read."""
    groups: dict[object, list[str]] = {}
    for name in names:
        kind = architecture.kind(name)
        together = next((kinds for kinds in architecture.shared_inputs if kind in kinds), name)
        groups.setdefault(together, []).append(name)
    return [tuple(group) for group in groups.values()]


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.get_parameter("weight")
    assert isinstance(weight, nn.Parameter)
    return weight


# --- the whole model --------------------------------------------------------------------------------------------------


def gather(
    model: nn.Module,
    batches: Sequence[Batch],
    make: Make,
    *,
    architecture: Architecture | None = None,
    forward: Forward | None = None,
) -> dict[str, Tensor]:
    """Give the statistics of all prunable weights of the model as it is: one forward per batch."""
    batches = checked(batches)
    blocks, tokens = blocks_of(model, architecture), Tokens()
    run = forward or (lambda batch: model(**batch))
    with evaluating(model), hooked(blocks, make, tokens) as sums:
        for batch in batches:
            batch = placed(batch, model)
            tokens.look_at(batch)
            run(batch)
    return values_of(sums, blocks)


# --- details ----------------------------------------------------------------------------------------------------------


class Tokens:
    """Which tokens of the current batch count: all but padding."""

    keep: Tensor | None = None  # bool [rows · length]; None: all

    def look_at(self, batch: Batch) -> None:
        mask = batch.get("attention_mask")
        self.keep = None if mask is None or bool(mask.all()) else mask.reshape(-1).bool()

    def of(self, inputs: Tensor, name: str) -> Tensor:
        """Give the counted tokens of a matrix's inputs: [T, D]."""
        flat = inputs.detach().reshape(-1, inputs.shape[-1])
        if self.keep is None:
            return flat
        if len(flat) != len(self.keep):
            raise ValueError(
                f"weight {name!r} reads {len(flat)} tokens of a batch whose attention_mask has {len(self.keep)}: "
                "give calibration rows without padding"
            )
        return flat[self.keep]


@contextlib.contextmanager
def hooked(blocks: Sequence[Block], make: Make, tokens: Tokens) -> Iterator[dict[str, Statistic]]:
    """Add up the inputs of these blocks' matrices while the model runs; shared inputs once."""
    sums: dict[str, Statistic] = {}
    hooks = []
    for block in blocks:
        for names in block.shared:
            layer, first = block.layers[names[0]], names[0]

            def add(module: nn.Module, args: tuple[Any, ...], names=names, first=first) -> None:
                inputs = tokens.of(args[0], first)
                if first not in sums:
                    sums.update(dict.fromkeys(names, make(inputs.shape[1], inputs.device)))
                sums[first].add(inputs)

            hooks.append(layer.register_forward_pre_hook(add))
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def values_of(sums: Mapping[str, Statistic], blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Give the statistics in the fixed order, one tensor for all weights that share inputs.

    Raises ValueError naming a weight that did not run, or whose inputs are not finite.
    """
    values = {id(statistic): statistic.value() for statistic in sums.values()}
    names = [name for block in blocks for name in block.layers]
    for name in names:
        if name not in sums:
            raise ValueError(f"weight {name!r} did not run on the calibration rows: give the model's whole forward")
        value = values[id(sums[name])]
        squares = value.diagonal() if value.ndim == 2 else value  # no other entry of a Hessian is larger
        if not bool(torch.isfinite(squares).all()):
            raise ValueError(
                f"weight {name!r} reads inputs that are NaN, infinite or too large on the calibration rows: "
                "mend the checkpoint, or calibrate it in another number format"
            )
    return {name: values[id(sums[name])] for name in names}


def checked(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Give the batches, or raise ValueError where there is no row."""
    if not batches:
        raise ValueError("batches=[] holds no calibration row: give some, e.g. calibration.num_rows=128")
    return batches


def num_rows(batches: Sequence[Batch]) -> int:
    """Count the rows of all batches."""
    return sum(len(next(iter(batch.values()))) for batch in batches)


def placed(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """Bring a batch to the model's device, and images to its number format."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() and value.ndim > 1 else None)
        for name, value in batch.items()
    }


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode without gradients; every module's own mode is put back."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was
