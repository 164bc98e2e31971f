"""The small real sweep that faults hit: every command that computes, each with what it leaves."""

VIT = "trainer.max_epochs=1 trainer.accelerator=cpu trainer.checkpoint_steps=1 data.num_workers=0"
RECORDED = "callbacks=recorder callbacks.recorder.every=2"

PREPARED = [
    f"train backbone=vit_tiny data=digits {VIT} trainer.max_steps=12 optimizer.lr=2e-3 save_model=true name=d".split()
]
"""Run once, before the first fault: the model that others read."""

NUM_FAULTS = {"train": 14, "lottery": 7, "evaluate": 4, "prune": 4, "trace": 3, "report": 2}
"""Faults of one round, by command."""

PLACES = {
    "train": "outputs/tuned-tiny", "lottery": "outputs/ticket", "evaluate": "outputs/curve", "prune": "pruned",
    "trace": "outputs/trace", "report": "outputs/nothing",
}  # fmt: skip
"""Where a command leaves what may be cut short: what starting it again computes anew."""


def commands(number: int) -> list[list[str]]:
    """Give the commands of one round (words, in order): 13 runs, seeds of their own in each round.

    Pre-training and a grid of fine-tunings, recorded; tickets and their rounds; a curve without training; a streamed
    pruning; a trace of a series of checkpoints; a report.
    """
    seeds = f"axes.seed='{2 * number},{2 * number + 1}'"
    grid = "hydra.sweeper.grids=[{sparsity:'${axes.sparsity}',seed:'${axes.seed}'}]"
    lines = [
        f"train experiment=demo arm=sl_plain scale=tiny {VIT} {RECORDED} name=tuned pretraining_seed={number} {seeds} "
        f"axes.sparsity='0.0,0.5' {grid}",
        f"lottery backbone=vit_tiny data=digits {VIT} trainer.max_steps=4 pruner.step=0.3 pruner.rewind=1 name=ticket "
        f"-m sparsity=0.3,0.6 seed={number}",
        "evaluate backbone=vit_tiny backbone.path=kept/model backbone.pretrained=true data=digits name=curve "
        f"trainer.accelerator=cpu sparsities=[0.0,0.3,0.6,0.9] seed={number}",
        f"prune checkpoint=kept/model out=pruned sparsity=0.5 pruner=random seed={number}",
        "trace checkpoints=series name=trace",
        "report name=tuned-tiny",
    ]
    return [line.split() for line in lines]


def few() -> list[list[str]]:
    """Give a sweep of two points and their parent, and a pruning, for the tests of every day."""
    grid = "hydra.sweeper.grids=[{sparsity:'0.0,0.5',seed:'0'}]"
    lines = [
        f"train experiment=demo arm=sl_plain scale=tiny {VIT} {RECORDED} name=tuned {grid}",
        "prune checkpoint=kept/model out=pruned sparsity=0.5",
    ]
    return [line.split() for line in lines]
