"""Wanda and SparseGPT end to end on the shape of OPT-125m, against plain implementations; OPT-6.7B's shape on a card.

Peers, both sample by sample and matrix by matrix: "plain" takes every sample through the whole model once per block, by
hooks; "published" is arranged as the authors' code (hidden states kept, one block after the other). Both then sort the
rows of each matrix (Wanda), or go column by column in blocks of 128 (SparseGPT).
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from essential_sparsity.pruning import ActivationNorm, PerRow, Pruned, Pruner, SparseGPT, prunable_weights
from essential_sparsity.pruning.activations import Hessians, InputNorms, blocks_of
from essential_sparsity.pruning.calibration import walk
from tests.bench import machine
from tests.bench.figure import Figure, significant
from tests.bench.measure import seconds

WANDA = Pruner(ActivationNorm(), PerRow())
PRUNERS: dict[str, Any] = {"Wanda": WANDA, "SparseGPT": SparseGPT()}
SPARSITY = "0.5"


def opt_model(size: str, *, device: str = "cpu") -> Any:
    """Build an OPT decoder of random weights: "tiny", "125m" in fp32, or "6.7b" in bf16."""
    from transformers import OPTConfig, OPTModel

    width, layers, heads, words = {
        "tiny": (32, 2, 4, 100),
        "125m": (768, 12, 12, 50272),
        "6.7b": (4096, 32, 32, 50272),
    }[size]
    shape: dict[str, Any] = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    config = OPTConfig(num_hidden_layers=layers, num_attention_heads=heads, vocab_size=words, **shape)
    torch.manual_seed(0)
    with torch.device(device):
        return OPTModel._from_config(config, dtype=torch.bfloat16 if size == "6.7b" else torch.float32).eval()


def random_rows(model: Any, num_rows: int, length: int) -> Tensor:
    """Draw token ids [rows, length]."""
    return torch.randint(5, model.config.vocab_size, (num_rows, length), generator=torch.Generator().manual_seed(1))


def ours(pruner: Any, model: nn.Module, ids: Tensor, tokens: int) -> Pruned:
    """Prune in batches of about so many tokens."""
    parts = ids.split(max(1, tokens // ids.shape[1]))
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]
    return pruner.prune(model, sparsity=SPARSITY, batches=batches)


# --- peers ------------------------------------------------------------------------------------------------------------


class PlainNorms:
    """Wanda on one matrix: a running mean of squared norms per sample, then a sort of every row."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.squares, self.num = layer, torch.zeros(layer.in_features), 0

    def add(self, inputs: Tensor) -> None:
        """Add one sample [tokens, inputs]."""
        self.squares *= self.num / (self.num + 1)
        self.num += 1
        self.squares += torch.norm(inputs.T.float(), p=2, dim=1) ** 2 / self.num

    def pruned(self) -> Tensor:
        """Mark the smaller half of every row."""
        scores = self.layer.weight.abs() * self.squares.sqrt()
        order = torch.sort(scores, dim=-1, stable=True).indices
        pruned = torch.zeros_like(scores, dtype=torch.bool)
        return pruned.scatter_(1, order[:, : scores.shape[1] // 2], True)

    def prune(self) -> None:
        """Zero the smaller half of every row."""
        self.layer.weight.data[self.pruned()] = 0


class PlainHessian:
    """SparseGPT on one matrix: a running mean of Hessians per sample, then column by column."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.num = layer, 0
        self.hessian = torch.zeros(layer.in_features, layer.in_features)

    def add(self, inputs: Tensor) -> None:
        """Add one sample [tokens, inputs]."""
        self.hessian *= self.num / (self.num + 1)
        self.num += 1
        inputs = math.sqrt(2 / self.num) * inputs.T.float()
        self.hessian += inputs.matmul(inputs.T)

    def prune(self, block_size: int = 128, dampening: float = 0.01) -> None:
        """Zero half of every block of columns and correct the rest."""
        weight, hessian = self.layer.weight.data.clone(), self.hessian
        dead = hessian.diagonal() == 0
        hessian[dead, dead] = 1
        weight[:, dead] = 0
        places = torch.arange(len(hessian))
        hessian[places, places] += dampening * hessian.diagonal().mean()
        inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
        for start in range(0, weight.shape[1], block_size):
            stop = min(start + block_size, weight.shape[1])
            block, upper = weight[:, start:stop].clone(), inverse[start:stop, start:stop]
            done, errors = torch.zeros_like(block), torch.zeros_like(block)
            scores = block**2 / upper.diagonal()[None] ** 2
            pruned = scores < scores.flatten().sort().values[scores.numel() // 2]
            for column in range(stop - start):
                kept = block[:, column].clone()
                kept[pruned[:, column]] = 0
                done[:, column] = kept
                error = (block[:, column] - kept) / upper[column, column]
                block[:, column:] -= error[:, None].matmul(upper[column, column:][None])
                errors[:, column] = error
            weight[:, start:stop] = done
            weight[:, stop:] -= errors.matmul(inverse[start:stop, stop:])
        self.layer.weight.data = weight


Treat = Callable[[Any], Any]
TREATS: dict[str, Treat] = {"Wanda": PlainNorms, "SparseGPT": PlainHessian}


def _treated(layers: Sequence[nn.Module], treat: Treat) -> tuple[list[Any], list[Any]]:
    """Hook one statistic on every matrix."""
    statistics, hooks = [treat(layer) for layer in layers], []
    for layer, statistic in zip(layers, statistics, strict=True):
        add = statistic.add
        hooks.append(layer.register_forward_hook(lambda _, args, __, add=add: add(args[0].flatten(0, -2))))
    return statistics, hooks


@torch.no_grad()
def plain(model: nn.Module, ids: Tensor, treat: Treat) -> nn.Module:
    """Take every sample through the whole model, once per block; gives the pruned model."""
    for block in blocks_of(model):
        statistics, hooks = _treated(list(block.layers.values()), treat)
        for row in ids:
            model(input_ids=row[None])
        for hook in hooks:
            hook.remove()
        for statistic in statistics:
            statistic.prune()
    return model


class _Caught(Exception):
    """Ends a forward pass at the first block."""


@torch.no_grad()
def published(model: nn.Module, ids: Tensor, treat: Treat) -> nn.Module:
    """Keep what goes into the first block and take it from block to block, sample by sample; gives the pruned model."""
    blocks, caught = blocks_of(model), []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args, kwargs))
        raise _Caught

    hook = blocks[0].module.register_forward_pre_hook(catch, with_kwargs=True)
    for row in ids:
        try:
            model(input_ids=row[None], use_cache=False)
        except _Caught:
            continue
    hook.remove()
    hidden = [args[0] for args, _ in caught]
    for block in blocks:
        statistics, hooks = _treated(list(block.layers.values()), treat)
        for state, (args, kwargs) in zip(hidden, caught, strict=True):
            block.module(state, *args[1:], **kwargs)
        for hook in hooks:
            hook.remove()
        for statistic in statistics:
            statistic.prune()
        hidden = [
            block.module(state, *args[1:], **kwargs) for state, (args, kwargs) in zip(hidden, caught, strict=True)
        ]
    return model


# --- figures ----------------------------------------------------------------------------------------------------------


def run(quick: bool = False) -> Iterator[Figure]:
    """Time both pruners against both peers, say where our time goes, and compare results; then the card."""
    num_rows, length, rounds = (4, 16, 1) if quick else (128, 128, 2)
    model = opt_model("tiny" if quick else "125m")
    ids = random_rows(model, num_rows, length)
    told = f"{num_rows} rows of {length} tokens"
    for name, pruner in PRUNERS.items():
        found = ours(pruner, model, ids, 2048)  # warms up
        mine = median(seconds(lambda p=pruner: ours(p, model, ids, 2048)) for _ in range(rounds))
        peers = {peer: copy.deepcopy(model) for peer in (plain, published)}
        theirs = [seconds(lambda c=copied, p=peer, n=name: p(c, ids, TREATS[n])) for peer, copied in peers.items()]
        limit = _limit(model, ids, name, quick)
        yield from against_both(f"{name} at 0.5, OPT-125m, {told}", mine, *theirs, limit=limit)
        yield from _profile(name, model, ids, mine)
        yield from _agreement(name, model, ids, found, peers[published])
    yield from on_card(quick)


def against_both(
    what: str, mine: float, per_matrix: float, by_blocks: float, *, limit: dict[str, Any]
) -> Iterator[Figure]:
    """Compare seconds with both peers: the goal stands against `plain`, and the note tells both ratios."""
    note = (
        f"{significant(per_matrix / mine)}× the straightforward way, per sample and per matrix, against which the goal "
        f"stands; {significant(by_blocks / mine)}× the published way, block by block; the peers are timed once"
    )
    yield Figure(f"{what}; {plain.__name__}", mine, per_matrix, goal="≥ 4", note=note, **limit)
    yield Figure(f"{what}; {published.__name__}", mine, by_blocks, note="no goal", **limit)


def _limit(model: nn.Module, ids: Tensor, name: str, quick: bool) -> dict[str, Any]:
    """Give the time of the matrix products alone: each weight twice per token, and half of each Hessian."""
    weights = prunable_weights(model).values()
    flops = 4 * sum(weight.numel() for weight in weights) * ids.numel()
    if name == "SparseGPT":
        widths = [block.weights[names[0]].shape[1] for block in blocks_of(model) for names in block.shared]
        flops += sum(width**2 for width in widths) * ids.numel()
    return {"limit": flops / machine.rates(quick).fp32, "limit_is": "for its matrix products"}


class _Nothing:
    """A statistic that gathers nothing."""

    def __init__(self, num_inputs: int, device: torch.device) -> None:
        self._value = torch.ones(1)

    def add(self, inputs: Tensor) -> None:
        """Do nothing."""

    def value(self) -> Tensor:
        """Give one number."""
        return self._value


def _profile(name: str, model: nn.Module, ids: Tensor, whole: float) -> Iterator[Figure]:
    """Split our time: the walk's forward passes, its statistics, and what is left: masks and corrections."""
    batches = [{"input_ids": part} for part in ids.split(max(1, 2048 // ids.shape[1]))]

    def walked(make: Any) -> float:
        return seconds(lambda: walk(model, batches, make, lambda block, _: {n: w.detach() for n, w in block.items()}))

    forward = walked(_Nothing)
    gathered = walked({"Wanda": InputNorms, "SparseGPT": Hessians}[name])
    yield Figure(f"{name}: of which forward passes", forward)
    yield Figure(f"{name}: of which sums over inputs", max(0.0, gathered - forward))
    yield Figure(f"{name}: of which masks and corrections", max(0.0, whole - gathered))


@torch.no_grad()
def _agreement(name: str, model: Any, ids: Tensor, found: Pruned, peer: Any) -> Iterator[Figure]:
    """Compare the error of the pruned model's outputs with the peer's; for Wanda masks too."""
    if name == "Wanda":
        share = _differing(model, ids[:4, :48])
        what = "Wanda: share of mask entries that differ from plain (ties of rounding)"
        yield Figure(what, share, unit="", goal="≤ 1e-5", check=True)
    sample = ids[:4]
    dense, theirs = model(input_ids=sample)[0], peer(input_ids=sample)[0]
    pruned = copy.deepcopy(model)
    for weight_name, weight in prunable_weights(pruned).items():
        weight.copy_(weight * found.masks[weight_name] if found.weights is None else found.weights[weight_name])
    errors = [float((outputs - dense).square().sum()) for outputs in (pruned(input_ids=sample)[0], theirs)]
    what = f"{name}: squared error of the outputs over the peer's"
    yield Figure(what, errors[0] / errors[1], unit="", goal="≤ 1.01", check=True)


@torch.no_grad()
def _differing(model: nn.Module, ids: Tensor) -> float:
    """Compare our masks with those of every row through the whole model, behind blocks that are pruned by ours.

    Behind the peer's own blocks one tie of rounding would move what goes into all blocks after it.
    """
    masks, walked, num = ours(WANDA, model, ids, 2048).masks, copy.deepcopy(model), 0
    for block in blocks_of(walked):
        statistics, hooks = _treated(list(block.layers.values()), PlainNorms)
        for row in ids:
            walked(input_ids=row[None])
        for hook in hooks:
            hook.remove()
        for (name, weight), statistic in zip(block.weights.items(), statistics, strict=True):
            num += int((statistic.pruned() == masks[name]).sum())
            weight.mul_(masks[name])
    return num / masks.num_prunable


def on_card(quick: bool) -> Iterator[Figure]:
    """Prune the shape of OPT-6.7B in bf16 on a card with 128 rows of 2,048 tokens, where there is one."""
    if not torch.cuda.is_available():
        yield Figure("OPT-6.7B on the card", skipped="no CUDA card: skipped")
        return
    num_rows, length = (4, 64) if quick else (128, 2048)
    model = opt_model("125m" if quick else "6.7b", device="cuda")
    ids = random_rows(model, num_rows, length)
    for name, goal in (("Wanda", "≤ 30"), ("SparseGPT", "≤ 120")):
        pruner = PRUNERS[name]
        ours(pruner, opt_model("125m", device="cuda"), ids[:2, :64], 16384)  # loads libraries
        torch.cuda.reset_peak_memory_stats()

        def whole(pruner: Any = pruner) -> None:
            ours(pruner, model, ids, 16384)
            torch.cuda.synchronize()

        taken = seconds(whole)
        note = f"peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of card memory"
        yield Figure(f"{name} at 0.5, OPT-6.7B bf16, {num_rows} rows of {length} tokens", taken, goal=goal, note=note)
