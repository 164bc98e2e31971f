"""What settings may be, before anything is built from them: nodes hold settings, counts are whole numbers."""

import math
from collections.abc import Callable, Mapping
from typing import Any

NODES = ("backbone", "data", "task", "pruner", "optimizer", "schedule", "trainer", "parent", "callbacks", "logger")
"""Keys that hold settings of their own, or null."""

Rule = tuple[Callable[[Any], bool], str]


def check_nodes(config: Any) -> None:
    """Check that what holds settings of its own does, in parents too; ValueError names the key and its remedy."""
    stage, prefix = config, ""
    while stage is not None:
        for key in NODES:
            node = stage.get(key)
            if node is not None and not hasattr(node, "keys"):
                raise ValueError(f"{prefix}{key}={node} holds no settings: choose one of conf/{key}, or give its keys")
        for name, node in (stage.get("callbacks") or {}).items():
            if node is not None and not hasattr(node, "keys"):
                raise ValueError(f"{prefix}callbacks.{name}={node} holds no settings: give its _target_")
        stage, prefix = stage.get("parent"), f"{prefix}parent."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole(least: int, *others: Any) -> Rule:
    """Take whole numbers from `least` on, and the others."""
    also = "".join(f", or {'null' if other is None else other}" for other in others)
    told = f"give a whole number from {least} on{also}"
    return lambda value: value in others or (_is_whole(value) and value >= least), told


def number(least: float, *others: Any, above: bool = False) -> Rule:
    """Take finite numbers from `least` on (or above it), and the others."""
    also = "".join(f", or {'null' if other is None else other}" for other in others)
    told = f"give a number {'above' if above else 'from'} {least:g}{'' if above else ' on'}{also}"
    return lambda value: value in others or (_is_number(value) and (value > least if above else value >= least)), told


RULES: dict[str, Rule] = {
    "seed": whole(0),
    "pretraining_seed": whole(0),
    "data_fraction": (lambda value: _is_number(value) and 0 < value <= 1, "give a share in (0, 1]"),
    "sparsities": (lambda value: isinstance(value, list) and bool(value), "give a list of levels, [0.1,0.5]"),
    "trainer.max_epochs": whole(0, -1, None),
    "trainer.max_steps": whole(0, -1, None),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.gradient_clip_val": number(0, None),
    "trainer.checkpoint_steps": whole(1, None),
    "trainer.checkpoint_minutes": number(0, None),
    "backbone.path": (
        lambda value: value is None or isinstance(value, str),
        "give a folder, './5' where it is a number",
    ),
    "optimizer.lr": number(0),
    "optimizer.weight_decay": number(0),
    "data.batch_size": whole(1),
    "data.evaluation_batch_size": whole(1),
    "data.num_workers": whole(0),
}
"""Key → what it may be, of a run and of its parents."""


def check_values(config: Mapping[str, Any], prefix: str = "") -> None:
    """Check the values of a resolved configuration, its parents' too; ValueError names key, value and rule."""
    for dotted, (allowed, told) in RULES.items():
        group, _, key = dotted.rpartition(".")
        node = config.get(group) if group else config
        if isinstance(node, Mapping) and key in node and not allowed(node[key]):
            raise ValueError(f"{prefix}{dotted}={node[key]!r} cannot be: {told}")
    if config.get("parent"):
        check_values(config["parent"], f"{prefix}parent.")
