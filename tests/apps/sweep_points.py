"""What an experiment would sweep over, without running it: the overrides of every point, by Hydra and our sweeper."""

from functools import cache
from types import SimpleNamespace
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from essential_sparsity.apps import conf


def app_of(name: str) -> str:
    """The command that an experiment's first line names."""
    text = (conf.CONF / "experiment" / f"{name}.yaml").read_text()
    return "evaluate" if f"# essential-sparsity evaluate experiment={name}" in text else "train"


@cache
def composed(name: str, *words: str) -> Any:
    """Compose an experiment with Hydra's own node."""
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        return compose(app_of(name), overrides=[f"experiment={name}", *words], return_hydra_config=True)


def completed(name: str, *words: str) -> dict[str, Any]:
    """Give the complete, resolved configuration of one point of an experiment."""
    with initialize_config_dir(str(conf.CONF), version_base="1.3"):
        found = compose(app_of(name), overrides=[f"experiment={name}", *words])
    return conf.complete(found, choices={}, overrides=[]).config


def points(name: str, *words: str) -> list[list[str]]:
    """Give the overrides of every point; one empty list where an experiment is no sweep."""
    config = composed(name, *words)
    from hydra_plugins.essential_sparsity.grids import Grids  # here: Hydra's scan for plugins loads their modules anew

    OmegaConf.set_struct(config, False)
    config.hydra.runtime.cwd = "."
    sweeper = Grids(grids=config.hydra.sweeper.grids, across=config.hydra.sweeper.across)
    sweeper.hydra_context, sweeper.config = SimpleNamespace(config_loader=None), config  # type: ignore[assignment]
    return sweeper.points([])


def plain(config: Any) -> dict[str, Any]:
    """What is computed: a composed configuration without names, axes, report and Hydra's node, unresolved."""
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items() if k not in ("name", "axes", "report", "hydra", "experiment")}
