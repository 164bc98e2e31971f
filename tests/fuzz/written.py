"""Bad settings and words that were written down: DESIGN's traps, and what a hurried user types."""

from typing import Any

TRAIN: list[tuple[str, Any]] = [
    *(
        ("sparsity", value)
        for value in (1, 1.0, 1.2, -0.1, 50, "nan", float("nan"), float("inf"), "half", [0.5], "", True)
    ),
    *(("seed", value) for value in ("x", 1.5, None, -1, [1])),
    *(("trainer.max_epochs", value) for value in ("x", -5, 1.5)),
    *(("trainer.max_steps", value) for value in ("x", -7)),
    *(("trainer.precision", value) for value in ("32-tru", 7, "")),
    *(("trainer.accelerator", value) for value in ("gpuu", "", 3)),
    *(("trainer.devices", value) for value in (0, -3, "x", 1.5)),
    *(("trainer.gradient_clip_val", value) for value in ("x", -1.0)),
    *(("trainer.accumulate_grad_batches", value) for value in (0, -1, "x", 1.5)),
    *(("trainer.checkpoint_steps", value) for value in (0, -1, "x")),
    *(("optimizer.lr", value) for value in ("x", -1.0, float("nan"), None)),
    *(("optimizer.weight_decay", value) for value in ("x", -1.0)),
    *(("data.batch_size", value) for value in (0, -4, "x", 1.5, None)),
    *(("data.num_train_rows", value) for value in (-1, "x", 0)),
    *(("data.num_evaluation_rows", value) for value in (-1, "x", 0)),
    *(("data.part", value) for value in ("third", 7)),
    *(("data", value) for value in (None, "digits", {"_target_": "essential_sparsity.data.digits.Digit"})),
    *(("backbone", value) for value in ("vit", {"_target_": "nothing.at.All"})),
    *(("task", value) for value in ("x", {"_target_": "essential_sparsity.tasks.nothing.At"})),
    *(("optimizer", value) for value in ("x", {"_target_": "torch.optim.Adamm", "_partial_": True})),
    *(("pruner", value) for value in ("omp", {"_target_": "essential_sparsity.pruning.Prune"}, [])),
    *(("parent", value) for value in ("x", 3, [1])),
    *(("callbacks", value) for value in ("x", {"a": {"_target_": "essential_sparsity.callbacks.Nothing"}}, {"a": 3})),
    *(("backbone.path", value) for value in ("nowhere", 5, "/")),
    *(("data_fraction", value) for value in (0, -1, 2)),
]

EVALUATE: list[tuple[str, Any]] = [
    *(("sparsities", value) for value in ([], 0.5, [1.0], ["x"], [0.5, -1], None, "0.5")),
    *(("backbone.path", value) for value in ("nowhere", "/")),
    ("trainer.precision", "x"),
]

PRUNE: list[tuple[str, Any]] = [
    *(("sparsity", value) for value in (1, 1.5, -1, "x", float("nan"))),
    *(("checkpoint", value) for value in ("nowhere", "/", "", "a.txt", 3)),
    *(("out", value) for value in ("", "/proc/nothing")),
    *(("pruner.pattern", value) for value in (124, "4:2", "2:0", "x", "2:4:8", {"keep": 2})),
]

COMPARE: list[tuple[str, Any]] = [
    *(("masks", value) for value in ("nowhere", [], [1, 2], 3, {"a": 1}, "*", "/")),
    ("pretrained", "nowhere"),
]

TRACE: list[tuple[str, Any]] = [
    *(("checkpoints", value) for value in ("nowhere", "", "/proc/self/fdinfo", 5)),
    *(("multiples", value) for value in ([], "x", [0], [-1], 0.05, ["x"])),
]

REPORT: list[tuple[str, Any]] = [*(("name", value) for value in ("nothing", "", "../..", 5, "/"))]

SETTINGS = {
    "train": TRAIN, "evaluate": EVALUATE, "prune": PRUNE, "compare": COMPARE, "trace": TRACE, "report": REPORT,
}  # fmt: skip
"""Command → key and value."""

SMALL = "backbone=vit_tiny data=digits trainer.max_steps=1"

WORDS = [
    *(f"train {word}" for word in ("seed", "=", "=3", "a=b=c", "seed=1,2", "+seed=1", "~nothing", "++", "seed=${x}")),
    *(f"train {SMALL} {word}" for word in ("pruner=nm pruner.pattern=2:4:8", "pruner=nm pruner.pattern=124")),
    *(f"train {word}" for word in ("backbone@x=vit_tiny", "data=[digits]", "experiment=../demo", "scale=huge")),
    *(f"{command} sparsty=1" for command in ("evaluate", "prune", "compare", "trace", "report", "lottery", "doctor")),
    *("prune checkpoint=a", "prune out=b", "compare", "trace", "report name=", "-m", "", "--sparsity=3"),
]
"""What is typed."""
