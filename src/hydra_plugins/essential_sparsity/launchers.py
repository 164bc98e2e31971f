"""Hydra's launchers for one host's cards, SLURM and Ray, by the plugins of the extra `launchers`: no point is lost."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Joblib(Launcher):
    """Points in processes side by side, one for each card of this host, each with the card that it is given."""

    name = "joblib"

    def __init__(self, n_jobs: int | None = None) -> None:
        self.num_workers = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuse at once where the plugin is not installed."""
        from essential_sparsity.apps import workers

        workers.require(self.name)
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do all points; one whose worker died is lost, the others go on."""
        from essential_sparsity.apps import workers

        return workers.on_cards(self, job_overrides, initial_job_idx)


class Slurm(Joblib):
    """Points as the jobs of a SLURM array, which time limits and pre-emption put back into the queue."""

    name, cluster = "submitit_slurm", "slurm"

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit all points and wait for each; one whose job died is lost, the others go on."""
        from essential_sparsity.apps import workers

        return workers.on_slurm(self, job_overrides, initial_job_idx, cluster=self.cluster)


class Processes(Slurm):
    """Points as processes of this host by submitit, all at once: SLURM's launcher to try out."""

    name, cluster = "submitit_local", "local"


class Ray(Joblib):
    """Points as tasks of a Ray cluster, tried again where their worker dies."""

    name = "ray"

    def __init__(self, ray: DictConfig) -> None:
        self.ray = ray

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do all points; one whose workers died as often as Ray tries again has failed, the others go on."""
        from essential_sparsity.apps import workers

        return workers.on_ray(self, job_overrides, initial_job_idx)
