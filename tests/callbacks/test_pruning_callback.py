"""PruningCallback holds zeros and equals `weight_orig * mask`, in every optimizer and through resume."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch.nn.utils import prune
from toy_training import TOY, Network, Toy, ToyWithAverage, adamw, batches, fit, sgd

from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.callbacks.pruning import KEEP_ZEROS
from essential_sparsity.pruning import Magnitude, Pruner, Random, Uniform, prunable_weights

HALF = {"sparsity": 0.5, "architecture": TOY}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().view(torch.int32)


def _reparametrised(network: Network, masks: Any) -> Network:
    """Train `weight_orig`, compute with `weight_orig * mask`: torch's own pruning, the oracle."""
    network = copy.deepcopy(network)
    for canonical in masks:
        module = network.get_submodule(canonical.removesuffix(".weight"))
        prune.custom_from_mask(module, "weight", masks[canonical])
    return network


SETTINGS = {
    "sgd_momentum": (sgd, {}, 0.0),
    "adamw_clipping": (adamw, {"gradient_clip_val": 0.05}, 2e-6),
    "adamw_accumulation": (adamw, {"accumulate_grad_batches": 3}, 2e-6),
    "sgd_bf16": (sgd, {"precision": "bf16-mixed"}, 0.0),
    "adamw_bf16_true": (adamw, {"precision": "bf16-true", "gradient_clip_val": 1.0}, 0.0),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_equals_reparametrisation_over_50_steps(setting: str) -> None:
    optimizer, trainer_settings, tolerance = SETTINGS[setting]
    callback = PruningCallback(Pruner(), **HALF)
    ours = Toy(Network(), optimizer)
    fit(ours, 50, [callback], **trainer_settings)

    oracle = Toy(_reparametrised(Network(), callback.masks), optimizer)
    fit(oracle, 50, [], **trainer_settings)

    assert len(ours.losses) == 50 * trainer_settings.get("accumulate_grad_batches", 1)
    torch.testing.assert_close(torch.tensor(ours.losses), torch.tensor(oracle.losses), rtol=0, atol=tolerance)
    for canonical, weight in prunable_weights(ours, TOY).items():
        effective = oracle.network.get_submodule(canonical.removesuffix(".weight")).get_parameter("weight_orig")
        kept = callback.masks[canonical]
        torch.testing.assert_close(weight[kept], effective[kept].to(weight.dtype), rtol=0, atol=10 * tolerance)


class _ZerosAfterEveryStep(Callback):
    """Checks that pruned weights are +0.0 whenever a batch has ended, and that something was pruned."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.pruning, self.steps = pruning, 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        for name, weight in prunable_weights(pl_module, TOY).items():
            pruned = ~self.pruning.masks[name]
            assert pruned.any()
            assert not weight.view({2: torch.int16, 4: torch.int32}[weight.element_size()])[pruned].any()
        self.steps += 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_pruned_weights_are_positive_zero_after_every_step(setting: str) -> None:
    optimizer, trainer_settings, _ = SETTINGS[setting]
    callback = PruningCallback(Pruner(), **HALF)
    check = _ZerosAfterEveryStep(callback)
    fit(Toy(Network(), optimizer), 10, [callback, check], **trainer_settings)
    assert check.steps >= 10


class _Noisy(torch.optim.SGD):
    """Moves every weight, whatever its gradient: pruned ones must be zeroed after each of its steps."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for weight in self.param_groups[0]["params"]:
                weight.add_(1e-3)
        return loss


OPTIMIZERS = [(kind, {"weight_decay": 0.1}) for kind in KEEP_ZEROS]
OPTIMIZERS += [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}), (_Noisy, {})]
OPTIMIZERS += [(torch.optim.AdamW, {"fused": True}), (torch.optim.Adam, {"amsgrad": True})]


@pytest.mark.parametrize("kind, settings", OPTIMIZERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_zeros_stay_under_optimizers_that_keep_them_by_themselves_and_under_others(kind: Any, settings: Any) -> None:
    callback = PruningCallback(Pruner(), **HALF)
    check = _ZerosAfterEveryStep(callback)
    fit(Toy(Network(), lambda weights: kind(weights, lr=0.01, **settings)), 30, [callback, check])
    assert check.steps == 30


def test_pruned_gradients_do_not_enter_the_clipping_norm() -> None:
    norms = []

    class Norm(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if grads:
                norms.append(float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))))

    callback = PruningCallback(Pruner(), sparsity=0.9, architecture=TOY)
    module = Toy(Network(), sgd)
    fit(module, 5, [callback, Norm()], gradient_clip_val=1e-3)
    assert norms[-1] == pytest.approx(1e-3, rel=1e-2)


def test_masks_are_those_of_the_weights_before_the_first_step() -> None:
    expected = Pruner()(prunable_weights(Network(), TOY), sparsity=0.5)
    callback = PruningCallback(Pruner(), **HALF)
    module = Toy(Network(), adamw)
    fit(module, 5, [callback])
    assert callback.masks.digest() == expected.digest()
    fit(module, 2, [callback])  # a second fit keeps them: one-shot means once
    assert callback.masks.digest() == expected.digest()


@pytest.mark.parametrize("sparsity", [None, 0.0, "0"])
def test_dense_takes_the_same_path_and_changes_no_bit(sparsity: Any) -> None:
    plain, dense = Toy(Network(), adamw), Toy(Network(), adamw)
    with torch.no_grad():
        for module in (plain, dense):
            module.get_parameter("network.blocks.0.in.weight")[0, 0] = -0.0
    callback = PruningCallback(Pruner(), sparsity=sparsity, architecture=TOY)
    fit(plain, 20, [])
    fit(dense, 20, [callback])
    assert callback.masks.num_pruned == 0
    assert plain.losses == dense.losses
    for ours, theirs in zip(dense.parameters(), plain.parameters()):
        assert torch.equal(_bits(ours), _bits(theirs))


def test_infinite_gradients_of_pruned_weights_do_not_reach_the_others() -> None:
    class Infinite(Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            for name, weight in prunable_weights(pl_module, TOY).items():
                assert weight.grad is not None
                weight.grad[~callback.masks[name]] = float("inf")

    callback = PruningCallback(Pruner(), **HALF)
    module = Toy(Network(), sgd)
    fit(module, 3, [Infinite(), callback])
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


# --- resume ---


def _interrupted(folder: Path, **pruning: Any) -> Path:
    """Train, and keep the checkpoint after three steps, as a run that was killed there leaves it."""
    path = folder / "last.ckpt"

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(path)

    settings = {"pruner": Pruner(), **HALF} | pruning
    fit(Toy(Network(), adamw), 4, [PruningCallback(**settings), Save()], epoch=1)
    return path


def test_resuming_restores_the_masks_and_the_trajectory(tmp_path: Path) -> None:
    undisturbed, straight = Toy(Network(), adamw), PruningCallback(Pruner(), **HALF)
    fit(undisturbed, 9, [straight], epoch=1)

    resumed, callback = Toy(Network(), adamw), PruningCallback(Pruner(), **HALF)
    path = _interrupted(tmp_path)
    fit(resumed, 9, [callback, _ZerosAfterEveryStep(callback)], ckpt_path=path, epoch=1)
    assert resumed.losses == undisturbed.losses[3:]
    assert callback.masks.digest() == straight.masks.digest()
    for ours, theirs in zip(resumed.parameters(), undisturbed.parameters()):
        assert torch.equal(_bits(ours), _bits(theirs))


@pytest.mark.parametrize(
    "changed",
    [
        {"sparsity": 0.25},
        {"sparsity": 0.0},
        {"pruner": Pruner(Random(1))},
        {"pruner": Pruner(Magnitude(), Uniform())},
    ],
    ids=["other sparsity", "dense", "random", "uniform"],
)
def test_resuming_under_other_masks_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = _interrupted(tmp_path)
    settings = {"pruner": Pruner(), **HALF} | changed
    with pytest.raises(ValueError, match="trained under other masks"):
        fit(Toy(Network(), adamw), 6, [PruningCallback(**settings)], ckpt_path=path)


def test_resuming_from_another_pre_trained_model_is_refused(tmp_path: Path) -> None:
    path = _interrupted(tmp_path)
    with pytest.raises(ValueError, match="trained under other masks"):
        fit(Toy(Network(seed=5), adamw), 6, [PruningCallback(Pruner(), **HALF)], ckpt_path=path)


def test_resuming_from_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    trainer = fit(Toy(Network(), adamw), 3, [])
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint has no masks, this run prunes to sparsity 0\.5"):
        fit(Toy(Network(), adamw), 6, [PruningCallback(Pruner(), **HALF)], ckpt_path=tmp_path / "plain.ckpt")


def test_checkpoint_whose_weights_were_changed_is_refused(tmp_path: Path) -> None:
    path = _interrupted(tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["network.blocks.0.out.weight"] += 1
    torch.save(content, path)
    with pytest.raises(RuntimeError, match=r"'blocks.0.out.weight' in the restored model are not \+0.0"):
        fit(Toy(Network(), adamw), 6, [PruningCallback(Pruner(), **HALF)], ckpt_path=path)


def test_checkpoints_hold_plain_values_and_exact_zeros_under_the_models_names(tmp_path: Path) -> None:
    callback = PruningCallback(Pruner(), **HALF)
    module = Toy(Network(), adamw)
    fit(module, 3, [callback]).save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["callbacks"]["PruningCallback"] == {
        "digest": callback.masks.digest(),
        "sparsity": "1/2",
        "score": "magnitude",
        "allocation": "global",
        "pattern": "unstructured",
    }
    assert set(content["state_dict"]) == set(Toy(Network(), adamw).state_dict())
    for name, mask in callback.masks.items():
        assert not _bits(content["state_dict"][f"network.{name}"])[~mask].any()


def test_saving_after_something_wrote_to_pruned_weights_is_refused(tmp_path: Path) -> None:
    module = Toy(Network(), adamw)

    class Vandal(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            with torch.no_grad():
                module.get_parameter("network.blocks.1.out.weight").add_(1)
            trainer.save_checkpoint(tmp_path / "bad.ckpt")

    with pytest.raises(RuntimeError, match=r"'blocks.1.out.weight' in the checkpoint are not \+0.0"):
        fit(module, 2, [PruningCallback(Pruner(), **HALF), Vandal()])


# --- shadows, several fits, life cycle ---


def test_shadows_are_masked_at_the_start_and_stay_so(tmp_path: Path) -> None:
    callback = PruningCallback(Pruner(), **HALF)
    module = ToyWithAverage(Network(), adamw)
    fit(module, 10, [callback]).save_checkpoint(tmp_path / "last.ckpt")
    assert len(callback.masks) == 4  # the average is not counted
    for name, weight in prunable_weights(module.average, TOY).items():
        assert not _bits(weight)[~callback.masks[name]].any()
        assert weight[callback.masks[name]].all()


def test_shadow_that_lost_its_zeros_is_not_saved(tmp_path: Path) -> None:
    callback = PruningCallback(Pruner(), **HALF)
    module = ToyWithAverage(Network(), adamw)

    class Vandal(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            module.average.load_state_dict(Network().state_dict())
            trainer.save_checkpoint(tmp_path / "bad.ckpt")

    with pytest.raises(RuntimeError, match="in a shadow are not"):
        fit(module, 2, [callback, Vandal()])


def test_hooks_are_gone_after_training() -> None:
    callback = PruningCallback(Pruner(), **HALF)
    module = Toy(Network(), adamw)
    optimizer = fit(module, 2, [callback]).optimizers[0]
    x, y = batches(1)[0]
    torch.nn.functional.cross_entropy(module.network(x), y).backward()
    optimizer.step()
    name, weight = next(iter(prunable_weights(module, TOY).items()))
    assert weight[~callback.masks[name]].any()


def test_masks_before_setup_and_bad_sparsities_are_errors() -> None:
    with pytest.raises(RuntimeError, match="no masks yet"):
        _ = PruningCallback(Pruner(), sparsity=0.5).masks
    with pytest.raises(ValueError, match=r"did you mean 0\.012 or 0\.12\?"):
        PruningCallback(Pruner(), sparsity=1.2)


# --- two ranks ---


@pytest.mark.parametrize("case", ["equal", "unequal"])
def test_two_ranks_have_the_same_masks_and_weights_or_stop(case: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(script), case, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120
    )
    if case == "unequal":
        assert done.returncode != 0
        assert "ranks chose different masks" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = ((tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    masks = Pruner()(prunable_weights(Network(), TOY), sparsity=0.5)
    assert first.split()[0] == masks.digest()


# --- real libraries ---


@pytest.mark.real
def test_pruned_model_loads_in_plain_transformers(es_models: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(es_models / "all-MiniLM-L6-v2", dtype=torch.float32).train()
    callback = PruningCallback(Pruner(), sparsity=0.6)

    class Sentence(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            tokens = torch.arange(8).view(1, 8) + 1000 + batch_idx
            return self.network(tokens).last_hidden_state.square().mean()

    fit(Sentence(model, adamw), 2, [callback])
    model.save_pretrained(tmp_path)
    loaded = prunable_weights(AutoModel.from_pretrained(tmp_path, dtype=torch.float32))
    assert list(loaded) == list(callback.masks)
    for name, weight in loaded.items():
        assert not _bits(weight)[~callback.masks[name]].any()
    zeros = sum(int((weight == 0).sum()) for weight in loaded.values())
    assert zeros == callback.masks.num_pruned == round(0.6 * callback.masks.num_prunable)


def test_pruned_model_loads_in_plain_timm(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    settings: dict[str, Any] = {
        "img_size": 8,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
    }
    model = timm.create_model("vit_tiny_patch16_224", **settings)
    callback = PruningCallback(Pruner(), sparsity=0.6)

    class Images(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.network(torch.ones(2, 3, 8, 8)).square().mean()

    fit(Images(model, adamw), 2, [callback])
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = timm.create_model("vit_tiny_patch16_224", checkpoint_path=str(tmp_path / "model.safetensors"), **settings)
    for name, weight in prunable_weights(loaded).items():
        assert not _bits(weight)[~callback.masks[name]].any()
