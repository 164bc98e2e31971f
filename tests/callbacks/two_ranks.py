"""Train the toy on two forked ranks and write what each rank ends with: started by test_pruning_callback.py."""

import hashlib
import os
import sys
import warnings
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, TensorDataset
from toy_training import TOY, Network, Toy, adamw, batches, trainer

from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.pruning import Pruner


class Ranked(Toy):
    """Writes masks and weights of its rank when training ends; under `unequal` each rank starts from other weights."""

    def __init__(self, case: str, folder: Path) -> None:
        super().__init__(Network(), adamw)
        self.case, self.folder = case, folder

    def on_train_end(self) -> None:
        weights = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self.parameters())).hexdigest()
        (self.folder / f"rank{self.global_rank}.txt").write_text(f"{pruning.masks.digest()} {weights}")


class Unequal(PruningCallback):
    """Changes the weights of rank 1 before the masks are chosen, as a faulty loader might."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.global_rank == 1:
            pl_module.get_submodule("network").load_state_dict(Network(seed=9).state_dict())
        super().setup(trainer, pl_module, stage)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    case, folder = sys.argv[1], Path(sys.argv[2])
    kind = Unequal if case == "unequal" else PruningCallback
    pruning = kind(Pruner(), sparsity=0.5, architecture=TOY)
    x, y = (torch.cat(parts) for parts in zip(*batches(20)))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    made = trainer(8, [pruning], strategy=strategy, devices=2)
    made.fit(Ranked(case, folder), DataLoader(TensorDataset(x, y), batch_size=16))
