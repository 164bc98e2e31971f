"""PruningCallback: masks from the pre-trained weights, once, before the first step, and zeros that stay zero.

Gradients are masked before clipping, weights after every optimizer step, so that training equals that of the
reparametrisation `weight_orig * mask` while weights keep their names and checkpoints stay dense tensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from essential_sparsity.pruning import Architecture, Masks, prunable_weights
from essential_sparsity.pruning.masks import INTEGERS, keep_bits, zero_pruned_
from essential_sparsity.pruning.shards import held_part, held_rows

KEEP_ZEROS = (
    *(torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
)
"""Optimizers that leave a weight at +0.0 whose gradient and state are zero, decay or not: they work entry by entry."""

RENEWED_EVERY = 100
"""Steps after which even their pruned weights are zeroed again; any other optimizer's are after each step."""


class PruningCallback(Callback):
    """Prune in one shot before training and hold the pruned weights at +0.0 through it.

    `pruner` is a Pruner or what has its `resolve`, `describe` and `prune`; a calibrated one reads `batches` of the
    module's inputs. `masks` and `notes` (what the pruner says of its work) exist from `setup` on. A module may declare
    copies of the model (EMA, teacher) by `shadows()`: they are masked at the start and checked at checkpoints. Resuming
    from a checkpoint that was written under other masks, or under none, raises ValueError. `sparsity=None` and 0.0 take
    the same path with all-true masks and change no number. Several ranks compare their masks, and whole weights (DDP)
    bit by bit, at the start and every `compared_every` optimizer steps: RuntimeError where they differ. Weights in
    shards (FSDP2) are masked where they lie.
    """

    def __init__(
        self,
        pruner: Any,
        *,
        sparsity: object = None,
        architecture: Architecture | None = None,
        batches: Sequence[Mapping[str, Tensor]] | None = None,
        compared_every: int = 1000,
    ) -> None:
        if not isinstance(compared_every, int) or isinstance(compared_every, bool) or compared_every < 1:
            raise ValueError(f"compared_every={compared_every!r} is no positive number of steps: give 1 or more")
        self.pruner, self.compared_every = pruner, compared_every
        self.sparsity = pruner.resolve(sparsity)
        self.architecture = architecture
        self.batches = batches
        self.notes: dict[str, Any] = {}
        self._masks: Masks | None = None
        self._held: list[tuple[Tensor, Tensor]] = []
        self._names: dict[str, str] = {}
        self._hooks: list[RemovableHandle] = []
        self._restored = False
        self._num_steps, self._compared = 0, 0

    @property
    def masks(self) -> Masks:
        """The masks in use; raises RuntimeError before `setup`."""
        if self._masks is None:
            raise RuntimeError("PruningCallback has no masks yet: they are made when fit sets up the model")
        return self._masks

    # --- before the first step ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the masks from the model as it is, unless that was done, and apply them to it and its shadows."""
        if stage != "fit":
            return
        if self._masks is None:
            if self.batches is not None:
                pl_module.to(trainer.strategy.root_device)  # Lightning moves it there after this; calibration runs it
            pruned = self.pruner.prune(
                pl_module,
                sparsity=self.sparsity,
                architecture=self.architecture,
                batches=self.batches,
                forward=forward_of(pl_module),
            )
            self._masks, self.notes = pruned.masks, dict(pruned.notes)
            self._correct(pl_module, pruned.weights)
        self._restored = False
        for named in (prunable_weights(pl_module, self.architecture), *self._shadow_weights(pl_module)):
            self.masks.apply_(named)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other masks or of none."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            raise ValueError(
                f"checkpoint has no masks, this run prunes to sparsity {_told(self.sparsity)}: "
                "resume with the callbacks that wrote it, or start anew"
            )
        if self._masks is None:
            return  # trainer.validate and the like
        if state["digest"] != self.masks.digest():
            theirs, ours = f"sparsity {state['sparsity']}, {state['digest'][:8]}", self.masks.digest()[:8]
            raise ValueError(
                f"checkpoint was trained under other masks ({theirs}) than this run's (sparsity {self.sparsity}, "
                f"{ours}): use its pruner, sparsity and backbone"
            )
        self._restored = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind masks to the weights where they now lie, and check that all ranks have the same."""
        weights = prunable_weights(pl_module, self.architecture)
        if trainer.world_size > 1:
            check_ranks(self.masks, weights, step=trainer.global_step)
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        self._names = {canonical: names[id(weight)] for canonical, weight in weights.items()}
        self._held = [(weight, keep_bits(keep)) for _, weight, keep in self._pruned(weights)]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check a restored checkpoint, and have every optimizer mask the weights after its steps."""
        if trainer.ckpt_path is not None and not self._restored:
            raise ValueError(f"checkpoint {trainer.ckpt_path} holds weights alone, no masks: resume from a full one")
        if self._restored:
            self._check_zero(prunable_weights(pl_module, self.architecture), "the restored model")
        self._num_steps, self._compared = 0, trainer.global_step
        self._hooks = [optimizer.register_step_post_hook(self._after_step) for optimizer in trainer.optimizers]

    # --- at every step ---

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Zero the pruned gradients: unscaled, and before clipping takes their norm."""
        for weight, bits in self._held:
            if weight.grad is not None:
                zero_pruned_(held_part(weight.grad), bits)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Zero the pruned weights again, where this optimizer could have moved them off +0.0."""
        self._num_steps += 1
        if type(optimizer) in KEEP_ZEROS and self._num_steps % RENEWED_EVERY != 1:
            return
        for weight, bits in self._held:
            zero_pruned_(held_part(weight), bits)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare ranks now and then."""
        step = trainer.global_step
        if trainer.world_size > 1 and step > self._compared and step % self.compared_every == 0:
            weights = prunable_weights(pl_module, self.architecture)
            self._check_zero(weights, "the model")
            check_ranks(self.masks, weights, step=step)
            self._compared = step

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """Say which masks are in use, in plain values."""
        if self._masks is None:
            return {}
        return {"digest": self._masks.digest(), "sparsity": str(self.sparsity), **self.pruner.describe()}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Check that all that is saved is exactly zero where it is pruned."""
        if self._masks is None:
            return
        saved = checkpoint["state_dict"]  # of shards it is put together on rank 0 alone
        self._check_zero({canonical: saved[name] for canonical, name in self._names.items() if saved}, "the checkpoint")
        for weights in self._shadow_weights(pl_module):
            self._check_zero(weights, "a shadow")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hooks off the optimizers and let go of the weights."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._held = [], []

    # --- details ---

    @torch.no_grad()
    def _correct(self, pl_module: LightningModule, corrected: Mapping[str, Tensor] | None) -> None:
        """Write what a pruner made of the surviving weights into the model and its shadows."""
        if corrected is None:
            return
        for named in (prunable_weights(pl_module, self.architecture), *self._shadow_weights(pl_module)):
            for name, weight in named.items():
                weight.copy_(corrected[name])

    def _shadow_weights(self, pl_module: LightningModule) -> list[dict[str, nn.Parameter]]:
        declare = getattr(pl_module, "shadows", None)
        shadows = cast(Iterable[nn.Module], declare()) if callable(declare) else ()
        return [prunable_weights(shadow, self.architecture) for shadow in shadows]

    def _pruned(self, weights: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor, Tensor]]:
        """Go through the weights that lose anything: name, weight, keep mask on the weight's device."""
        for name, weight in weights.items():
            if self.masks.num_kept(name) < self.masks.num(name):
                yield name, weight, held_rows(self.masks[name], weight).to(weight.device)

    def _check_zero(self, weights: Mapping[str, Tensor], where: str) -> None:
        for name, weight, keep in self._pruned(weights):
            bits = held_part(weight.detach()).view(INTEGERS[weight.element_size()])
            bad = int(torch.count_nonzero(bits.masked_fill(keep, 0)))
            if bad:
                raise RuntimeError(f"{bad} pruned entries of {name!r} in {where} are not +0.0: something wrote to them")


def forward_of(module: Any) -> Callable[[Any], Any]:
    """Give how a batch goes through a module: by its task's `scores`, else as the model's keyword arguments."""
    if callable(getattr(module, "scores", None)):
        return module.scores
    model = getattr(module, "model", module)
    return lambda batch: model(**batch)


def _told(sparsity: Fraction | None) -> str:
    return "the masks' own" if sparsity is None else f"{float(sparsity):g}"


def check_ranks(masks: Masks, weights: Mapping[str, Tensor], *, step: int) -> None:
    """Raise RuntimeError, on every rank, where ranks have different masks, or different weights that lie whole."""
    whole = {name: weight.detach() for name, weight in weights.items() if not isinstance(weight, DTensor)}
    sums = [int(w.view(INTEGERS[w.element_size()]).sum(dtype=torch.int64)) for w in whole.values()]
    told: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (masks.digest(), sums))
    if any(digest != told[0][0] for digest, _ in told):
        digests = ", ".join(digest[:8] for digest, _ in told)
        raise RuntimeError(f"ranks chose different masks ({digests}): load equal weights on all")
    for name, column in zip(whole, zip(*(sums for _, sums in told), strict=True), strict=True):
        if len(set(column)) > 1:
            raise RuntimeError(f"ranks have different weights {name!r} at step {step}: one has gone astray, start anew")
