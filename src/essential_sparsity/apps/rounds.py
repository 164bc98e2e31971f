"""Chains of parents that follow from a pruner: the rounds of a lottery, the fine-tuning before a late pruning."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from essential_sparsity.inputs import suggest
from essential_sparsity.runs import ROUND_ROLE

ROUND = ("backbone", "data", "task", "pruner", "optimizer", "schedule", "trainer", "callbacks")
"""What a round has in common with the run that it comes before."""

LOTTERY = "essential_sparsity.pruning.Lottery"


def add_rounds(config: DictConfig) -> None:
    """Make the rounds that come before a pruner's masks the run's chain of parents: dense first, each sparser.

    What the configuration names as its own parent becomes the first round's: what all of them start from. `search`
    says by name what rounds take in place of the run's own data, task and so on, for pruners that say `found_on`.
    Errors: ValueError where a ticket would be trained with the seed that found it, or `found_on` names nothing.
    """
    search = config.pop("search", None) or {}
    target = str((config.get("pruner") or {}).get("_target_", ""))
    if not target.endswith(("Lottery", "AfterTraining")) or "sparsity" not in config:
        return
    from essential_sparsity.apps.conf import instantiate

    own = OmegaConf.to_container(config.pruner, resolve=True)
    assert isinstance(own, dict)
    pruner = instantiate({str(key): value for key, value in own.items()})
    rounds, seed = pruner.rounds(config.sparsity), pruner.seed_of_rounds(config.seed)
    if rounds and seed == config.seed and target.endswith("Lottery"):
        raise ValueError(f"seed={config.seed} is the search's own: train the ticket with a seed that did not find it")
    common = _common(config, search, getattr(pruner, "found_on", None))
    common.pruner = {"_target_": LOTTERY, "step": pruner.step, "rewind": pruner.rewind}
    shared = OmegaConf.to_container(common, resolve=False)
    assert isinstance(shared, dict)
    before = config.get("parent")
    for level in rounds:
        told = {"sparsity": float(level), "seed": seed, "role": ROUND_ROLE, "parent": before}
        before = OmegaConf.create({**{str(key): value for key, value in shared.items()}, **told})
    config.parent = before


def _common(config: DictConfig, search: Any, found_on: str | None) -> DictConfig:
    """Give what all rounds have in common: the run's own settings, or those that the search is told."""
    kept = OmegaConf.masked_copy(config, [key for key in ROUND if key in config])
    common = OmegaConf.create(OmegaConf.to_container(kept, resolve=False))
    assert isinstance(common, DictConfig)
    if found_on is None:
        return common
    if found_on not in search:
        raise ValueError(
            f"pruner.found_on={found_on} is no search that the configuration names{suggest(found_on, list(search))}"
        )
    for key, node in search[found_on].items():
        own = OmegaConf.create(OmegaConf.to_container(node, resolve=False))
        replaces = "_target_" in own and own._target_ != (common.get(key) or {}).get("_target_")
        common[key] = own if replaces else OmegaConf.merge(common.get(key) or {}, own)
    return common
