"""DINO does what the paper says, to 1e-6; zeros stay, kills are invisible, a collapse is no result."""

import functools
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dino_parts import ADAMW, backbone, batches, distillation, train
from distillation_oracle import DinoHead, LiteralDino, cosine_scheduler, loss_of, temperature_scheduler
from pytorch_lightning import Callback

from essential_sparsity.callbacks import PruningCallback
from essential_sparsity.callbacks.checkpoint_every import CheckpointEvery
from essential_sparsity.callbacks.loader_position import LoaderPosition
from essential_sparsity.callbacks.step_seed import StepSeed
from essential_sparsity.data.batches import BatchLoader, BatchOrder
from essential_sparsity.pruning import Global, Magnitude, Pruner, Unstructured, prunable_weights
from essential_sparsity.tasks import distillation as parts
from essential_sparsity.tasks.averaging import DropPath
from essential_sparsity.tasks.optimization import cosine, cosine_between

ROOT = Path(__file__).resolve().parents[2]


# --- agreement with a literal implementation --------------------------------------------------------------------------


def literal(module: Any, *, steps: int, epoch_steps: int) -> LiteralDino:
    """Give the literal DINO with a task's weights."""
    head = DinoHead(32, 48, 32, 16, 3).double()
    head.mlp.load_state_dict(module.projection.mlp.state_dict())
    weight_norm: Any = head.last_layer.parametrizations
    weight_norm.weight.original1.data.copy_(module.projection.last.direction)
    return LiteralDino(module.model, head, lr=1e-3, steps=steps, epoch_steps=epoch_steps, out_dim=48)


class Losses(Callback):
    """Keeps every batch's loss and the centre after it."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.centres: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.centres.append(pl_module.centre.clone())


def test_twenty_steps_agree_with_the_literal_implementation() -> None:
    module: Any = distillation(schedule=cosine, drop_path=0.0).double()
    made, seen = batches(5, dtype=torch.float64), Losses()
    oracle = literal(module, steps=20, epoch_steps=5)
    train(module, made, callbacks=[seen], max_epochs=4)
    for step in range(20):
        loss = oracle.train_on(made[step % 5]["global_views"], made[step % 5]["local_views"])
        assert seen.losses[step] == pytest.approx(loss, abs=1e-6)
    assert max(seen.losses) - min(seen.losses) > 0.1, "something was learnt"
    assert torch.allclose(seen.centres[-1], oracle.centre[0], atol=1e-6, rtol=0)
    pairs = [
        (module.model, oracle.student), (module.projection.mlp, oracle.student_head.mlp),
        (module.teacher, oracle.teacher), (module.teacher_projection.mlp, oracle.teacher_head.mlp),
    ]  # fmt: skip
    for ours, theirs in pairs:
        expected = dict(theirs.named_parameters())
        assert max(float((w.detach() - expected[n].detach()).abs().max()) for n, w in ours.named_parameters()) < 1e-6
    for ours, theirs in ((module.projection, oracle.student_head), (module.teacher_projection, oracle.teacher_head)):
        weight_norm: Any = theirs.last_layer.parametrizations
        assert torch.allclose(ours.last.direction, weight_norm.weight.original1, atol=1e-6, rtol=0)
    moved = module.projection.last.direction.detach() - module.teacher_projection.last.direction
    assert moved.abs().max() > 1e-4, "the last layer moved after the first epoch"


@pytest.mark.parametrize(("num_global", "num_local"), [(2, 8), (2, 0), (1, 1), (3, 2)])
def test_the_loss_is_the_mean_over_all_pairs_of_different_views(num_global: int, num_local: int) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(num_global, 5, 7, generator=generator, dtype=torch.float64)
    student = torch.randn(num_global + num_local, 5, 7, generator=generator, dtype=torch.float64).requires_grad_()
    centre = torch.randn(7, generator=generator, dtype=torch.float64)
    targets = parts.teacher_targets(teacher, centre, temperature=0.05)
    ours = parts.distillation_loss(student, targets, temperature=0.1)
    theirs = loss_of(list(student), list(teacher), centre, 0.05, 0.1)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    ours, theirs = (torch.autograd.grad(loss, student)[0] for loss in (ours, theirs))
    assert torch.allclose(ours, theirs, atol=1e-12, rtol=0)


def test_schedules_are_the_published_ones() -> None:
    published = cosine_scheduler(0.996, 1.0, 40)
    assert [cosine_between(0.996, 1.0, step=step, num_steps=40) for step in range(40)] == pytest.approx(list(published))
    assert cosine_between(0.04, 0.4, step=99, num_steps=40) == 0.4
    for warmup in (0, 1, 3):
        wanted = temperature_scheduler(0.04, 0.07, warmup, 6)
        ours = [parts.teacher_temperature(0.04, 0.07, epoch=epoch, warmup_epochs=warmup) for epoch in range(6)]
        assert ours == pytest.approx(list(wanted))


# --- what moves, and when ---------------------------------------------------------------------------------------------


class Steps(Callback):
    """Keeps the weight decays and the teacher's and the last layer's sums after every batch."""

    def __init__(self) -> None:
        self.decays: list[list[float]] = []
        self.sums: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.decays.append([group["weight_decay"] for group in trainer.optimizers[0].param_groups])
        teacher = sum(float(weight.double().sum()) for weight in pl_module.teacher.parameters())
        self.sums.append((teacher, float(pl_module.projection.last.direction.detach().double().sum())))


def test_the_teacher_moves_with_optimizer_steps_not_with_accumulated_batches() -> None:
    seen = Steps()
    train(distillation(), batches(6), callbacks=[seen], accumulate_grad_batches=3)
    teachers = [teacher for teacher, _ in seen.sums]
    assert teachers[0] == teachers[1] != teachers[2] == teachers[3] == teachers[4] != teachers[5]


def test_weight_decay_follows_the_step_where_there_is_any() -> None:
    seen = Steps()
    train(distillation(weight_decay=[0.0, 0.4]), batches(4), callbacks=[seen])
    assert [first for first, _ in seen.decays] == pytest.approx(list(cosine_scheduler(0.0, 0.4, 4)))
    assert {second for _, second in seen.decays} == {0.0}
    train(
        distillation(weight_decay=None, optimizer=functools.partial(ADAMW, weight_decay=0.3)),
        batches(2),
        callbacks=[seen],
    )
    assert seen.decays[-1] == [0.3, 0.0]


def test_the_last_layer_stands_still_in_the_first_epoch_and_its_gradient_is_not_clipped_with() -> None:
    seen = Steps()
    train(distillation(), batches(3), callbacks=[seen], max_epochs=2, gradient_clip_val=1.0)
    last = [value for _, value in seen.sums]
    assert last[0] == last[1] == last[2] != last[3]


def test_only_the_student_drops_paths() -> None:
    module = distillation(drop_path=0.5)
    shares = [part.share for part in module.model.modules() if isinstance(part, DropPath)]
    assert shares == [0.0, 0.0, 0.5, 0.5]
    assert not any(isinstance(part, DropPath) for part in module.teacher.modules())
    assert (
        module.model.state_dict().keys() == backbone().build(num_labels=10, seed=0, head="features").state_dict().keys()
    )
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 2, 2))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.05)


def test_pruned_weights_of_student_and_teacher_stay_zero() -> None:
    module = distillation()
    pruner = Pruner(Magnitude(), Global(), Unstructured())
    pruning = PruningCallback(pruner, sparsity=0.5)
    train(module, batches(4), callbacks=[pruning], gradient_clip_val=1.0)
    for model in (module.model, module.teacher):
        for name, weight in prunable_weights(model).items():
            assert (weight[~pruning.masks[name]] == 0).all() and not torch.signbit(weight[~pruning.masks[name]]).any()
    assert pruning.masks.num_prunable == sum(weight.numel() for weight in prunable_weights(module.model).values())


# --- kills ------------------------------------------------------------------------------------------------------------


def resumable(folder: Path, extra: Any = ()) -> dict[str, Any]:
    """Train two epochs of five steps, checkpoints every two steps; gives all of the task's state."""
    made = batches(5, rows=6)
    order = BatchOrder(30, 6, seed=3)

    def views(rows: Any, epoch: int) -> dict[str, torch.Tensor]:
        """Views by (epoch, row) alone, as data/views.py's."""
        whole = batches(1, rows=6, seed=1000 * epoch + int(rows[0]))[0]
        return {**made[int(rows[0]) // 6], **whole}

    loader, module = BatchLoader(views, order), distillation(schedule=cosine, drop_path=0.3)
    checkpoint = CheckpointEvery(folder, steps=2)
    train(
        module, loader, callbacks=[StepSeed(0), LoaderPosition(loader), *extra, checkpoint], max_epochs=2,
        ckpt_path=checkpoint.path if checkpoint.path.is_file() else None, gradient_clip_val=1.0,
    )  # fmt: skip
    groups = [group["weight_decay"] for group in module.trainer.optimizers[0].param_groups]
    return {**module.state_dict(), "decays": torch.tensor(groups)}


class Kill(Callback):
    """Ends the process at a step, as kill −9 does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os._exit(9)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_student_teacher_centre_and_schedules(tmp_path: Path) -> None:
    code = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, 'tests/tasks')\n"
        "from pathlib import Path; from test_self_distillation import Kill, resumable\n"
        f"resumable(Path({str(tmp_path / 'killed')!r}), [Kill(int(sys.argv[1]))])"
    )
    for step in ("4", "9"):  # the checkpoint is that of step 2; then that of step 8, in the second epoch
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, step], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 9, done.stderr[-800:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        killed, whole = resumable(tmp_path / "killed"), resumable(tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert killed.keys() == whole.keys()
    assert {"centre", "evidence", "decays"} < whole.keys()
    assert any(name.startswith("teacher_projection.") for name in whole)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


# --- collapse ---------------------------------------------------------------------------------------------------------


FAST = functools.partial(torch.optim.AdamW, lr=3e-3)


@pytest.mark.parametrize(("options", "told"), [
    ({"centre_momentum": 1.0}, "one dimension dominates the teacher's output"),
    ({"teacher_temperature": [1.0, 1.0], "student_temperature": 1.0}, "output is uniform for every image"),
])  # fmt: skip
def test_a_collapse_is_told_and_is_no_result(options: dict[str, Any], told: str) -> None:
    module = distillation(optimizer=FAST, momentum=0.8, **options)
    with pytest.raises(parts.CollapseError, match=told) as raised:
        train(module, batches(120))
    assert "lower optimizer.lr" in str(raised.value) and "\n" not in str(raised.value)


def test_a_sound_training_is_not_called_collapsed() -> None:
    module = distillation(momentum=0.99)
    train(module, batches(60, rows=24))
    assert module.collapsed() is None


def test_constant_features_are_a_collapse() -> None:
    assert "features are constant" in str(parts.collapse_of(0.001, 0.5, 0.6))
    assert parts.collapse_of(0.5, 0.0, 0.6) is None, "sharp, but differently for every image"
    assert parts.collapse_of(0.5, 0.9995, 0.9999) is None, "nearly uniform, but not the same for every image"


def test_a_training_too_short_to_judge_is_not_judged() -> None:
    train(distillation(centre_momentum=1.0, optimizer=FAST, momentum=0.5), batches(30))


# --- features and neighbours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export", ["teacher", "student"])
def test_what_is_exported_is_a_plain_timm_model(export: str, tmp_path: Path) -> None:
    import timm

    module, spec = distillation(export=export), backbone()
    train(module, batches(3))
    assert module.exported is (module.teacher if export == "teacher" else module.model)
    spec.save(module.exported, tmp_path)
    stored = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = batches(1)[0]["images"]
    with torch.no_grad():
        assert torch.allclose(stored(images), module.eval().features({"images": images}), atol=1e-6)


def test_rows_are_predicted_by_their_neighbours() -> None:
    module = distillation().eval()
    known, (asked,) = batches(4, rows=50), batches(1, rows=20, seed=5)
    with pytest.raises(ValueError, match="call remember"):
        module.predict_step(asked)
    module.remember(known)
    with torch.no_grad():
        columns = module.predict_step(asked)
        bank = torch.nn.functional.normalize(torch.cat([module.features(batch) for batch in known]), dim=1)
        queries = torch.nn.functional.normalize(module.features(asked), dim=1)
    labels = torch.cat([batch["labels"] for batch in known])
    for index, query in enumerate(queries):  # DINO's eval_knn.py, one row at a time
        cosines, nearest = (bank @ query).topk(20)
        votes = [0.0] * 10
        for value, place in zip(cosines.tolist(), nearest.tolist()):
            votes[int(labels[place])] += math.exp(value / 0.07)
        share = votes[int(asked["labels"][index])] / sum(votes)
        assert int(columns["prediction"][index]) == votes.index(max(votes))
        assert float(columns["loss"][index]) == pytest.approx(-math.log(max(share, 1e-3)), abs=1e-4)
    assert list(columns) == ["row", "label", "prediction", "loss"]


def test_remembering_leaves_the_modes_as_they_were() -> None:
    module = distillation()
    module.teacher.eval()
    module.remember(batches(1))
    assert module.model.training and not module.teacher.training


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "told"), [
    ({"export": "techer"}, r"task\.export='techer' is unknown: did you mean 'teacher'\?"),
    ({"momentum": 1.2}, r"task\.momentum=1\.2 lies outside \[0, 1\]"),
    ({"weight_decay": 0.04}, r"task\.weight_decay=0\.04 is no pair of numbers"),
    ({"teacher_temperature": [0.0, 0.07]}, r"task\.teacher_temperature=\[0\.0, 0\.07\]: give a number and a pair"),
    ({"drop_path": 1.0}, r"task\.drop_path=1\.0 lies outside \[0, 1\)"),
    ({"out_dim": 1}, r"task's out_dim=1 of the projection is no whole number from 2 on"),
])  # fmt: skip
def test_wrong_settings_are_refused_by_name(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        distillation(**options)


def test_a_batch_too_small_for_centring_is_refused_at_the_start() -> None:
    def loader(num_rows: int, size: int) -> BatchLoader:
        return BatchLoader(lambda rows, epoch: batches(1, rows=len(rows))[0], BatchOrder(num_rows, size, seed=0))

    for num_rows, size in ((13, 4), (8, 1)):
        with pytest.raises(ValueError, match=f"data.batch_size={size} makes a batch of one row out of {num_rows}"):
            train(distillation(), loader(num_rows, size))
    train(distillation(), loader(14, 4))
    with pytest.raises(ValueError, match="a batch of one row has no centre"):
        distillation().loss(batches(1, rows=1)[0])


def test_batches_without_pairs_of_views_are_refused() -> None:
    (batch,) = batches(1)
    with pytest.raises(ValueError, match=r"give \+data/augmentation=multi_crop"):
        distillation().loss({"images": batch["images"]})
    with pytest.raises(ValueError, match="at least two views"):
        distillation().loss({"global_views": batch["global_views"][:1]})
    assert distillation().loss({"global_views": batch["global_views"]}).isfinite()


def test_views_that_the_model_cannot_read_are_refused() -> None:
    (batch,) = batches(1)
    with pytest.raises(
        ValueError, match=r"views of 3 px are no whole patches of 2 px: give data\.augmentation\.local_size=4"
    ):
        distillation().loss({**batch, "local_views": batch["local_views"][..., :3, :3]})
    model = backbone(dynamic_img_size=False).build(num_labels=10, seed=0, head="features")
    from essential_sparsity.tasks.self_distillation import SelfDistillation

    fixed = SelfDistillation(model, out_dim=8, hidden_dim=8, bottleneck_dim=8)
    with pytest.raises(ValueError, match=r"give backbone\.arguments\.dynamic_img_size=true"):
        fixed.loss(batch)


def test_a_family_that_takes_one_size_alone_is_refused() -> None:
    from essential_sparsity.backbones.vision import VisionBackbone

    with pytest.raises(ValueError, match="give a timm ViT, which takes images of several sizes"):
        VisionBackbone("resnet18", pretrained=False).build(num_labels=2, seed=0, head="features")
    with pytest.raises(ValueError, match="head='masked_lm' is unknown to vision backbones"):
        backbone().build(num_labels=2, seed=0, head="masked_lm")


def test_heads_of_features_do_not_depend_on_the_labels() -> None:
    few, many = (backbone().build(num_labels=num, seed=0, head="features").state_dict() for num in (2, 10))
    assert few.keys() == many.keys() and all(torch.equal(few[name], many[name]) for name in few)
    assert not any(name.startswith("head.") for name in few)
    with_classifier = backbone().build(num_labels=10, seed=0).state_dict()
    assert set(with_classifier) - set(few) == {"head.weight", "head.bias"}
    assert [*itertools.islice(few, 2)] == [*itertools.islice(with_classifier, 2)]
