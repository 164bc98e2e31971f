"""Calibrated pruning: a walk over a model's blocks, each pruned on the inputs that the pruned blocks before it produce.

One dense forward pass per batch tells what goes into the first block and what every block is given beside it (masks,
positions); then each block runs by itself, as Wanda (arXiv 2306.11695) and SparseGPT (arXiv 2301.00774) are published.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from essential_sparsity.pruning.activations import (
    Batch,
    Block,
    Forward,
    Make,
    Tokens,
    blocks_of,
    checked,
    evaluating,
    hooked,
    placed,
    values_of,
)
from essential_sparsity.pruning.architecture import Architecture
from essential_sparsity.pruning.masks import Masks

# --- block by block ---------------------------------------------------------------------------------------------------

Choose = Callable[[dict[str, nn.Parameter], dict[str, Tensor]], Mapping[str, Tensor]]
"""(weights of a block, statistics of their inputs) → what these weights become."""


def walk(
    model: nn.Module,
    batches: Sequence[Batch],
    make: Make,
    choose: Choose,
    *,
    architecture: Architecture | None = None,
    forward: Forward | None = None,
) -> None:
    """Let `choose` prune block after block, each on the inputs that the pruned blocks before it produce.

    A block runs twice per batch: to gather statistics, and with its new weights for the next block's inputs. The model
    is the same afterwards, weights and training mode. Raises ValueError where blocks do not simply follow one another.
    """
    batches = checked(batches)
    blocks = blocks_of(model, architecture)
    run = forward or (lambda batch: model(**batch))
    with evaluating(model):
        calls: list[_Call] = []
        for batch in batches:
            calls.append(_capture(blocks, placed(batch, model), run, like=calls[0] if calls else None))
        for number, block in enumerate(blocks):
            tokens = Tokens()
            with hooked([block], make, tokens) as sums:
                for call in calls:
                    tokens.keep = call.tokens.keep
                    call.run(number, block.module)
            chosen = choose(block.weights, values_of(sums, [block]))
            if block is not blocks[-1]:
                with _replaced(block.weights, chosen):
                    for call in calls:
                        call.hidden = call.run(number, block.module)


@dataclass
class _Call:
    """One batch on its way: what goes into the next block, and what each block is given beside it."""

    tokens: "Tokens"
    hidden: Tensor
    beside: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    @property
    def alike(self) -> bool:
        """Every block is given the very same things."""
        return all(_same(one, self.beside[0]) for one in self.beside)

    def run(self, number: int, block: nn.Module) -> Tensor:
        args, kwargs = self.beside[number]
        return _first(block(self.hidden, *args, **kwargs))


class _Enough(Exception):
    """Ends a forward pass from which nothing more is wanted."""


def _capture(blocks: Sequence[Block], batch: Batch, run: Forward, *, like: _Call | None) -> _Call:
    """Run the dense model on one batch up to where every block's arguments are known.

    Of the first batch this is the whole model, checked to be a chain of blocks; where all blocks were given the same
    things then, later batches (`like`) stop at the first block.
    """
    short = like is not None and like.alike
    call, last = _Call(Tokens(), torch.empty(0)), None
    call.tokens.look_at(batch)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        block = blocks[len(call.beside)] if len(call.beside) < len(blocks) else None
        if block is None or module is not block.module or not args or not isinstance(args[0], Tensor):
            raise ValueError(_no_chain(blocks, module))
        if last is None:
            call.hidden = args[0]
        elif not (args[0] is last or torch.equal(args[0], last)):
            raise ValueError(_no_chain(blocks, module))
        call.beside.append((tuple(map(_without_cache, args[1:])), {k: _without_cache(v) for k, v in kwargs.items()}))
        if short:
            call.beside *= len(blocks)
            raise _Enough

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        nonlocal last
        last = _first(output)

    hooks = [block.module.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    hooks += [block.module.register_forward_hook(after) for block in blocks]
    try:
        run(batch)
    except _Enough:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if len(call.beside) != len(blocks):
        raise ValueError(_no_chain(blocks, blocks[len(call.beside)].module))
    return call


def _no_chain(blocks: Sequence[Block], module: nn.Module) -> str:
    name = next(block.name for block in blocks if block.module is module)
    return (
        f"block {name!r} does not simply take what the block before it gives, once per batch: "
        "gather from the dense model instead (score.inputs=dense)"
    )


def _same(one: Any, other: Any) -> bool:
    """Compare arguments by identity of tensors and equality of plain values."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    plain = (bool, int, float, str)
    return one is other or (isinstance(one, plain) and isinstance(other, plain) and one == other)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def _without_cache(value: Any) -> Any:
    """Drop a cache of keys and values: a block that runs again would append to it."""
    return None if hasattr(value, "get_seq_length") else value


@contextlib.contextmanager
def _replaced(weights: Mapping[str, nn.Parameter], chosen: Mapping[str, Tensor]) -> Iterator[None]:
    """Give weights other values for a while; the values that they had are not copied."""
    original = {name: weight.data for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.data = chosen[name]
        yield
    finally:
        for name, weight in weights.items():
            weight.data = original[name]


# --- masks of blocks --------------------------------------------------------------------------------------------------


def all_kept(weights: Mapping[str, Tensor], origin: Mapping[str, Any]) -> Masks:
    """Give the masks of the dense model."""
    bits = {name: np.packbits(np.ones(weight.numel(), bool), bitorder="little") for name, weight in weights.items()}
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    return Masks(bits, shapes, **origin, requested=Fraction(0))


def together(parts: Sequence[Masks]) -> Masks:
    """Join the masks of blocks, in their order, to those of the model."""
    bits = {name: part.bits[name] for part in parts for name in part}
    shapes = {name: part.shapes[name] for part in parts for name in part}
    return replace(parts[0], bits=bits, shapes=shapes, num_ties=sum(part.num_ties for part in parts))
