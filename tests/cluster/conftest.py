"""A running SLURM, and the sweep's results on this host alone; each is skipped, visibly, where it cannot be."""

import functools
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import points
from tests.cluster.slurm import Slurm, missing, slurm
from tests.soak import outcome


def need(plugin: str) -> None:
    """Skip where a launcher's plugin is not installed."""
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"hydra-{plugin}-launcher is not installed: pip install 'essential-sparsity[launchers]'")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Give a SLURM of two nodes."""
    need("submitit")
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm") / "cluster") as found:
        yield found


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Give what says what the sweep leaves when this host does it, point after point: place → digest."""

    @functools.cache
    def left(*words: str) -> dict[str, str]:
        folder: Path = tmp_path_factory.mktemp("alone")
        code, text = points.run([*points.SWEEP, *words], folder, points.settings(folder))
        assert code == 0, text[-3000:]
        return outcome.left(folder / "outputs")

    return left
