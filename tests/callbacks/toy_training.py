"""A two-block network under Lightning for the tests of PruningCallback: small and deterministic."""

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from essential_sparsity.pruning import Architecture

TOY = Architecture.from_patterns(r"blocks\.(\d+)\.", ["in", "out"])


class Block(nn.Module):
    """x + out(gelu(in(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.add_module("in", nn.Linear(8, 16))
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.nn.functional.gelu(self.get_submodule("in")(self.norm(x))))


class Network(nn.Module):
    """Embedding, two blocks, head: only the blocks' matrices are prunable."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Linear(4, 8)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Toy(LightningModule):
    """Classifies random rows; keeps the losses."""

    def __init__(self, network: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], Any]) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self.network(x), y)
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class ToyWithAverage(Toy):
    """Keeps an exponential moving average of its network, a shadow as self-distillation has one."""

    def __init__(self, network: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], Any]) -> None:
        super().__init__(network, optimizer)
        self.average = copy.deepcopy(network).requires_grad_(False)

    def shadows(self) -> list[nn.Module]:
        return [self.average]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for mean, weight in zip(self.average.parameters(), self.network.parameters()):
                mean.lerp_(weight, 0.1)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW with strong decay, so that decay shows."""
    return torch.optim.AdamW((p for p in parameters if p.requires_grad), lr=1e-2, weight_decay=0.1)


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum and coupled decay."""
    return torch.optim.SGD((p for p in parameters if p.requires_grad), lr=0.05, momentum=0.9, weight_decay=0.01)


def batches(count: int = 200) -> list[tuple[Tensor, Tensor]]:
    """Give the same random batches every time."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 4, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def trainer(steps: int, callbacks: list[Any], **settings: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(callbacks=callbacks, **(quiet | settings))


def fit(
    module: Toy, steps: int, callbacks: list[Any], *, ckpt_path: Any = None, epoch: int = 200, **settings: Any
) -> Trainer:
    """Train for so many optimizer steps on epochs of so many batches."""
    made = trainer(steps, callbacks, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*was configured so validation.*")
        loader: DataLoader[Any] = DataLoader(cast(Any, batches(epoch)), batch_size=None)
        made.fit(module, train_dataloaders=loader, ckpt_path=ckpt_path)
    return made
