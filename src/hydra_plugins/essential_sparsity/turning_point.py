"""A sweep that chooses its own levels: bisection with confirming seeds until the turn is known, or the budget spent."""

from functools import partial
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TurningPoint(BasicSweeper):
    """Find the essential sparsity to ±`tolerance` with at most `budget` runs, through any launcher.

    Axes of the command line other than the seed make one search each (`pruner=omp,random`); seeds are those that every
    level has. `aside` takes the grids that an experiment file holds: this sweeper stands in their place.
    """

    def __init__(
        self,
        tolerance: float = 0.01,
        budget: int | None = None,
        noise: bool | None = None,
        confidence: float = 0.95,
        batch_size: int = 1,
        **aside: Any,
    ) -> None:
        super().__init__(max_batch_size=None, params=None)
        self.settings = {
            "tolerance": tolerance,
            "budget": budget,
            "noise": noise,
            "confidence": confidence,
            "batch_size": batch_size,
        }
        self.aside = frozenset(aside)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Let workers carry what was submitted to them."""
        from essential_sparsity.apps.submitted import Submitted

        self.task = Submitted(task_function)
        super().setup(hydra_context=hydra_context, task_function=self.task, config=config)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Launch round after round of runs until no search asks for more; then say where the turns lie."""
        from essential_sparsity.apps import launching, turning_point

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        turning_point.refuse_beside(self.config, self.aside)
        loader = self.hydra_context.config_loader
        searches = turning_point.searches(self.config, self.points(arguments), self.settings)
        launch = partial(launching.launch, self)
        return turning_point.run(self.config, searches, launch=launch, load=loader.load_sweep_config)

    def points(self, arguments: list[str]) -> list[list[str]]:
        """List the overrides of every combination of the axes on the command line, each once."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        found = self.split_arguments(parser.parse_overrides(arguments), None)[0]
        return [list(point) for point in dict.fromkeys(map(tuple, found))]
